"""The API as an application of Ray Serve, which `serving.server` runs.

A Serve configuration names it as `serving.application:build`; that of `infra/kuberay` does, for the cluster's operator.
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from contract.errors import SettingsInvalid
from contract.settings import Settings, load_settings
from serving.deployment import Api

# A resource that Ray gives to the head node alone.
_HEAD_NODE = "node:__internal_head__"


def bind(settings: Settings) -> Application:
    """The application for these settings; nothing runs yet."""
    # Paths below the home folder mean the same in a replica, whose working directory is another.
    travelling = settings.model_copy(update={"home": settings.home_path, "cache": settings.cache_path})
    api: Any = Api
    if settings.api_replicas == 1:
        # On the machine whose address people know.
        api = api.options(ray_actor_options={"resources": {_HEAD_NODE: 0.001}})
    application: Application = api.options(num_replicas=settings.api_replicas).bind(travelling)
    return application


def build(arguments: dict[str, str]) -> Application:
    """The application for the settings of the process that builds it, as Serve calls it.

    What a Serve configuration says of the deployment `api` (replicas, resources) wins over the settings.

    Raises:
        SettingsInvalid: for a wrong setting, and for `arguments`, of which there are none.
    """
    if arguments:
        raise SettingsInvalid(f"the application takes its settings from the environment, not {sorted(arguments)}")
    return bind(load_settings())
