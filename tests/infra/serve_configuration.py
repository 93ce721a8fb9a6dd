"""What Ray Serve makes of a configuration: reads YAML from standard input, writes JSON. Ray does not run.

A process of its own: Ray Serve's import raises deprecation warnings, which are errors in the tests.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml
from ray._common.utils import import_attr
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from contract.errors import SettingsInvalid


def understood(text: str) -> dict[str, Any]:
    """The one application of a configuration: how Serve reads it, and what its import path builds."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    (deployment,) = application.deployments
    builder = import_attr(application.import_path)
    built = call_user_app_builder_with_args_if_necessary(builder, application.args)
    assert isinstance(built, Application)
    try:
        builder({"shards": "8"})
        refused = ""
    except SettingsInvalid as error:
        refused = error.detail
    api = built._bound_deployment
    return {
        "proxy": config.proxy_location,
        "deployment": deployment.name,
        "replicas": deployment.num_replicas,
        "resources": deployment.ray_actor_options.resources,
        "built": api.name,
        "built_replicas": api.num_replicas,
        "built_home": str(api.init_args[0].home),
        "refused": refused,
    }


if __name__ == "__main__":
    json.dump(understood(sys.stdin.read()), sys.stdout)
