"""The methods of both clients for dead letters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar, Unpack

from serving.client import calls
from serving.client.answers import DeadLetter, DeadLetterPage, SettledLetters
from serving.client.attempts import Context, Flow, Retry, perform
from serving.client.options import LetterMatch

Result = TypeVar("Result")
LetterState: TypeAlias = Literal["waiting", "redriven", "dropped", "any"]


class DeadLetterMethods(ABC):
    """The methods of `Client`."""

    @abstractmethod
    def _context(self, deadline_s: float | None, retry: Retry | None = None) -> Context:
        """Of a call that begins."""

    @abstractmethod
    def _run(self, flow: Flow[Result]) -> Result:
        """Do what a flow asks for."""

    def dead_letters(
        self,
        collection: str,
        *,
        state: LetterState = "waiting",
        limit: int | None = None,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> DeadLetterPage:
        """One page of the events that led to nothing, newest first."""
        return self._run(
            perform(calls.dead_letter_page(collection, state, limit, cursor, match), self._context(deadline_s))
        )

    def dead_letter(self, collection: str, letter_id: str, *, deadline_s: float | None = None) -> DeadLetter:
        """One letter with its event; raises NotFound."""
        return self._run(perform(calls.dead_letter(collection, letter_id), self._context(deadline_s)))

    def redrive(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        *,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> SettledLetters:
        """Send the events of letters again: of those `ids`, or of all that match, a bounded number at a time."""
        return self._run(
            perform(calls.settle_dead_letters(collection, "redrive", ids, cursor, match), self._context(deadline_s))
        )

    def drop_dead_letters(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        *,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> SettledLetters:
        """Mark letters as done with: those `ids`, or all that match, a bounded number at a time."""
        return self._run(
            perform(calls.settle_dead_letters(collection, "drop", ids, cursor, match), self._context(deadline_s))
        )


class AsyncDeadLetterMethods(ABC):
    """The methods of `AsyncClient`; they take and return what those of `Client` do."""

    @abstractmethod
    def _context(self, deadline_s: float | None, retry: Retry | None = None) -> Context:
        """Of a call that begins."""

    @abstractmethod
    async def _run(self, flow: Flow[Result]) -> Result:
        """Do what a flow asks for."""

    async def dead_letters(
        self,
        collection: str,
        *,
        state: LetterState = "waiting",
        limit: int | None = None,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> DeadLetterPage:
        """One page of the events that led to nothing, newest first."""
        return await self._run(
            perform(calls.dead_letter_page(collection, state, limit, cursor, match), self._context(deadline_s))
        )

    async def dead_letter(self, collection: str, letter_id: str, *, deadline_s: float | None = None) -> DeadLetter:
        """One letter with its event; raises NotFound."""
        return await self._run(perform(calls.dead_letter(collection, letter_id), self._context(deadline_s)))

    async def redrive(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        *,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> SettledLetters:
        """Send the events of letters again: of those `ids`, or of all that match, a bounded number at a time."""
        call = calls.settle_dead_letters(collection, "redrive", ids, cursor, match)
        return await self._run(perform(call, self._context(deadline_s)))

    async def drop_dead_letters(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        *,
        cursor: str | None = None,
        deadline_s: float | None = None,
        **match: Unpack[LetterMatch],
    ) -> SettledLetters:
        """Mark letters as done with: those `ids`, or all that match, a bounded number at a time."""
        call = calls.settle_dead_letters(collection, "drop", ids, cursor, match)
        return await self._run(perform(call, self._context(deadline_s)))
