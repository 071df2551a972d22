"""The models of one worker: which endpoint has which card."""

from __future__ import annotations

from collections.abc import Mapping

from .._engine import CheckedEngine
from ..errors import StartupError
from ..wire.records import EndpointId, ModelRecord
from .adapter import adapted
from .card import ModelCard

ModelLike = ModelCard | str
"""A card, or the name of a text model."""


class ModelSet:
    """What a worker announces beside its instances, and what becomes of the engines behind it; never changes.

    Args:
        model: the card of the only endpoint, or a mapping of endpoint names to cards.
        engines: every endpoint of the worker.

    Raises:
        StartupError: a card is for no endpoint of this worker, or for requests that its engine cannot answer.
    """

    def __init__(
        self, model: ModelLike | Mapping[str, ModelLike] | None, engines: Mapping[EndpointId, CheckedEngine]
    ) -> None:
        self.cards: dict[EndpointId, ModelCard] = {}
        self._types: dict[EndpointId, tuple[str, ...]] = {}
        for endpoint_id, card in _by_endpoint(model, engines).items():
            engine = engines[endpoint_id]
            self.cards[endpoint_id] = card
            self._types[endpoint_id] = card.types_for(
                is_unary=engine.is_unary, is_bidirectional=engine.is_bidirectional
            )

    def adapted(self, engines: Mapping[EndpointId, CheckedEngine]) -> dict[EndpointId, CheckedEngine]:
        """Return the engines, those of models as the frontend expects them."""
        return {
            endpoint_id: adapted(engine, self.cards[endpoint_id], self._types[endpoint_id])
            if endpoint_id in self.cards
            else engine
            for endpoint_id, engine in engines.items()
        }

    def records(self, instance_id: int) -> list[ModelRecord]:
        """Return what discovery announces beside the instance."""
        return [
            ModelRecord(endpoint_id, instance_id, card.to_wire(self._types[endpoint_id]))
            for endpoint_id, card in self.cards.items()
        ]


def _by_endpoint(
    model: ModelLike | Mapping[str, ModelLike] | None, engines: Mapping[EndpointId, CheckedEngine]
) -> dict[EndpointId, ModelCard]:
    if model is None:
        return {}
    if not isinstance(model, Mapping):
        if len(engines) > 1:
            raise StartupError(f"one model and {len(engines)} endpoints: give a mapping of endpoint names to models")
        return dict.fromkeys(engines, _card(model))
    cards = {}
    for name, each in model.items():
        try:
            endpoint_id = EndpointId.parse(name)
        except ValueError as exc:
            raise StartupError(str(exc)) from exc
        if endpoint_id not in engines:
            raise StartupError(f"model for {endpoint_id}, which is not served here")
        cards[endpoint_id] = _card(each)
    return cards


def _card(model: ModelLike) -> ModelCard:
    if isinstance(model, (ModelCard, str)):
        return model if isinstance(model, ModelCard) else ModelCard(model)
    raise StartupError(f"model must be a name or an ingress.models.ModelCard, got {type(model).__name__}")
