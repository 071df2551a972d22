"""Model cards: what makes a worker appear as a model in the real OpenAI frontend. Re-exports only."""

from .card import ModelCard as ModelCard
from .card import slug_of as slug_of
from .files import ModelFile as ModelFile
from .files import ModelFiles as ModelFiles
from .requests import ChatMessage as ChatMessage
from .requests import ChatRequest as ChatRequest
from .requests import CompletionRequest as CompletionRequest
from .requests import SamplingOptions as SamplingOptions
from .requests import StopConditions as StopConditions
from .requests import StreamOptions as StreamOptions
from .requests import TokensRequest as TokensRequest
from .served import ModelLike as ModelLike
from .served import ModelSet as ModelSet
from .text import Finish as Finish
