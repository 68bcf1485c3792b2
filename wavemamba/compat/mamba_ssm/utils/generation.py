"""`mamba_ssm.utils.generation`: states between calls, and decoding one token after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wavemamba.errors import ConfigError

__all__ = ["GenerationMixin", "InferenceParams", "decode", "sample"]


@dataclass
class InferenceParams:
    """What the layers keep between two calls of a model."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    """Tokens seen so far."""
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    """The states of each layer."""
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin a new sequence; the states stay allocated."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class Decoded(NamedTuple):
    """What `decode` returns."""

    sequences: Tensor
    """(B, length) token ids, those of the prompt first."""
    scores: tuple[Tensor, ...] | None
    """The logits (B, vocabulary) of every new token, where asked for."""


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Choose a token for each row of logits (B, vocabulary): (B,).

    Args:
        logits: unnormalised log-probabilities.
        top_k: among so many of the likeliest; 1: the likeliest, 0: all.
        top_p: among the likeliest that hold this probability together; 0 or 1: all.
        min_p: among those with at least this share of the likeliest one's probability; 0: all.
        temperature: divides the logits, > 0.
    """
    if top_k == 1:
        return logits.argmax(-1)
    if not temperature > 0:
        raise ConfigError(f"temperature: expected > 0, got {temperature}; top_k=1 takes the likeliest token")
    logits = logits / temperature
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if 0.0 < min_p < 1.0:
        shares = logits.softmax(-1)
        logits = logits.masked_fill(shares < min_p * shares.amax(-1, keepdim=True), -torch.inf)
    if 0.0 < top_p < 1.0:
        ordered, places = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).gather(-1, places.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Decoded:
    """Continue token ids (B, L) up to `max_length`, or to the end token in every row.

    Args:
        input_ids: the prompt.
        model: called as `model(ids, position_ids=None, inference_params=..., num_last_tokens=1).logits`.
        max_length: tokens in all.
        top_k: see `sample`.
        top_p: see `sample`.
        min_p: see `sample`.
        temperature: see `sample`.
        repetition_penalty: divides the positive logits of tokens that came already, and multiplies the negative ones;
            > 0, 1 changes nothing.
        eos_token_id: stop when all rows have it.
        teacher_outputs: (B, T), tokens to take instead of chosen ones.
        vocab_size: logits that count; None: all.
        cg: accepted; calls are not captured in a CUDA graph.
        enable_timing: accepted.
        output_scores: keep the logits.
        streamer: has `put(ids)` and `end()`.

    Raises:
        ConfigError: `temperature` or `repetition_penalty` is not above 0.
    """
    if not repetition_penalty > 0:
        raise ConfigError(f"repetition_penalty: expected > 0, got {repetition_penalty}; 1 changes nothing")
    params = InferenceParams(max_seqlen=max_length, max_batch_size=input_ids.shape[0])
    sequence, scores, last = input_ids, [], input_ids
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while sequence.shape[1] < max_length:
        logits = model(last, position_ids=None, inference_params=params, num_last_tokens=1).logits[:, -1, :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        params.seqlen_offset += last.shape[1]
        if repetition_penalty != 1.0:
            came = logits.gather(1, sequence)
            logits = logits.scatter(
                1, sequence, torch.where(came < 0, came * repetition_penalty, came / repetition_penalty)
            )
        if teacher_outputs is not None and params.seqlen_offset < teacher_outputs.shape[1]:
            token = teacher_outputs[:, params.seqlen_offset]
        else:
            token = sample(logits, top_k, top_p, min_p, temperature)
        last = token.unsqueeze(1)
        sequence = torch.cat([sequence, last], dim=1)
        if streamer is not None:
            streamer.put(last.cpu())
        if eos_token_id is not None and bool((last == eos_token_id).all()):
            break
    if streamer is not None:
        streamer.end()
    return Decoded(sequence, tuple(scores) if output_scores else None)


class GenerationMixin:
    """Adds `generate` to a language model."""

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Continue token ids (B, L); see `decode`. Returns (B, length), or a `Decoded` where asked for."""
        found = decode(
            input_ids, self, max_length, top_k, top_p, min_p, temperature, output_scores=output_scores, **kwargs
        )
        return found if return_dict_in_generate else found.sequences
