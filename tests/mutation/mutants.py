"""Mutants of the formulas: each is one text of the package replaced by another that changes what is computed.

A mutant is written by hand, so that each differs from the original for some input: it is a fault that a hand could make
(a sign, a factor, an off-by-one, a term dropped or applied to all). Its tests are those that say what the line means.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "src" / "smalti"


class Mutant(NamedTuple):
    """A text of a file, what replaces it, and the tests that must then fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"

    def applied(self, text: str) -> str:
        """Return a file's text with the mutant in it. Raises ValueError unless the old text is there once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self}: the text is there {text.count(self.old)} times")
        return text.replace(self.old, self.new)


def _of(file: str, tests: str, changes: Mapping[str, str]) -> tuple[Mutant, ...]:
    paths = tuple(f"tests/{test}" for test in tests.split())
    return tuple(Mutant(file, old, new, paths) for old, new in changes.items())


MUTANTS: tuple[Mutant, ...] = (
    *_of(
        "generation/masked.py",
        "generation/test_parallel_decoding.py::test_parallel_decoding_is_its_definition_cell_by_cell "
        "generation/test_masked.py generation/test_loss.py generation/test_parallel_decoding.py",
        {
            "entries(confidence, unit, Tensor.sum) + jitter": "entries(confidence, unit, Tensor.sum) - jitter",
            "[1 - (step + 1) / len(plan[b]) for b in rows]": "[1 - step / len(plan[b]) for b in rows]",
            "jitter = config.noise * cooling[:, None] * gumbel": "jitter = config.noise * gumbel",
            "score = -(entries(confidence": "score = (entries(confidence",
            "entries(confidence, unit, Tensor.sum)": "entries(confidence, unit, Tensor.amax)",
            "gumbel(entries(noise[:, 1], unit))": "gumbel(entries(noise[:, 0], unit))",
            "config.guidance.at(step / len(plan[b]))": "config.guidance.at((step + 1) / len(plan[b]))",
            "math.cos(math.pi * progress / 2)": "math.cos(math.pi * progress / 2) ** 2",
            "2 / math.pi * math.acos(progress)": "1 - 2 / math.pi * math.acos(1 - progress)",
            "return 1 - progress**2": "return (1 - progress) ** 2",
            "float(1 - entries ** (progress - 1))": "float(1 - entries**-progress)",
            "masked_share(schedule, step / steps, entries)": "masked_share(schedule, (step - 1) / steps, entries)",
            "available - _ROUNDING).ceil()": "available - _ROUNDING).floor()",
            ".clamp_min(1).minimum(available)": ".minimum(available)",
            "scores.sort(dim=1, stable=True)": "scores.sort(dim=1, stable=True, descending=True)",
            "prompt.hinted[rows] & masked.any(2)": "prompt.hinted[rows] & masked.all(2)",
            "torch.where(is_masked[:, g], sample_logits": "torch.where(is_masked[:, 0], sample_logits",
            "masked[rows] = masked[rows] & ~filled": "masked[rows] = masked[rows] & filled",
            "_mirrored(i, 5, t), _mirrored(i, 2, h), _mirrored(i, 3, w)": "_mirrored(i, 5, t), _mirrored(i, 3, h), "
            "_mirrored(i, 2, w)",
            "above * base + i % base": "above + i % base",
            "logits.log_softmax(1).gather(1, rows": "logits.gather(1, rows",
        },
    ),
    *_of(
        "generation/sampling.py",
        "generation/test_sampling.py generation/test_parallel_decoding.py",
        {
            "(1 - math.cos(math.pi * progress**self.power)) / 2": "(1 - math.cos(math.pi * progress)) / 2",
            "if share >= self.negligible else 0.0": "",
            "return conditional + scale * (conditional - unconditional)": "return unconditional + scale * "
            "(conditional - unconditional)",
            "return -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()": "return -("
            "-uniform.clamp_min(torch.finfo(torch.float32).tiny).log())",
            "(logits - logits.amax(1, keepdim=True)) / temperature": "(logits - logits.amax(1, keepdim=True)) "
            "* temperature",
            "(cumulative <= target).sum(1)": "(cumulative < target).sum(1)",
            "ordered.cumsum(1) - ordered < config.top_p": "ordered.cumsum(1) < config.top_p",
            "allowed[:, config.top_k :] = False": "allowed[:, config.top_k + 1 :] = False",
            "* cumulative[:, -1:]": "",
            "mix(seed, sample, step) >> 1": "mix(seed, step) >> 1",
            "free = torch.full_like(condition.labels[self.samples], classes)": "free = condition.labels[self.samples]",
        },
    ),
    *_of(
        "generation/loss.py",
        "generation/test_loss.py generation/test_masked.py",
        {
            "- config.smoothing * log_p.mean(1)": "- config.smoothing * log_p.sum(1)",
            "(1 - config.smoothing) * plain": "plain",
            "counted + config.visible * (1 - counted)": "counted + (1 - config.visible) * (1 - counted)",
            "noise.classes < config.class_drop": "noise.classes > config.class_drop",
            "masked_fill(dropped, model.config.classes)": "masked_fill(dropped, 0)",
            "return self.total * len(self.entries) / self.entries.sum()": "return self.total / self.entries.sum()",
            "return (self.nats / self.entries).sum()": "return (self.nats / self.entries).mean()",
            "prompt._replace(known=prompt.known & False)": "prompt",
            "(log_p.argmax(1) == subtokens[:, g])[masked[:, g]].sum()": "(log_p.argmax(1) == subtokens[:, g]).sum()",
            "unsmoothed = LossConfig(smoothing=0.0)": "unsmoothed = LossConfig()",
            "generator=sample_generator(0, number, 0)": "generator=sample_generator(0, 0, 0)",
        },
    ),
    *_of(
        "generation/blocks.py",
        "generation/test_blocks.py generation/test_model.py",
        {
            "ROTARY_BASE ** (-j / max(1, count))": "ROTARY_BASE ** (j / max(1, count))",
            "(pairs - 2 * third, third, third)": "(third, third, pairs - 2 * third)",
            "left * cos - right * sin, right * cos + left * sin": "left * cos + right * sin, right * cos - left * sin",
            "return x * mask / (1 - share)": "return x * mask",
            ">= share": "< share",
            ".tril(all_ - new)": ".tril()",
            "x = x + drop(self.attention(self.norm1(x)": "x = drop(self.attention(self.norm1(x)",
            "std = deviation / math.sqrt(2 * config.depth) if ends else deviation": "std = deviation",
            "deviation = 0.64 / math.sqrt(config.width)": "deviation = 0.64 / config.width",
            "query, key = self.query_norm(query), self.key_norm(key)": "query, key = self.query_norm(query), key",
            "self.norm(F.gelu(self.dense(feature)))": "self.norm(self.dense(feature))",
            "weight[: self.sizes[g]]  # type": "weight[-self.sizes[g] :]  # type",
        },
    ),
    *_of(
        "generation/autoregressive.py",
        "generation/test_model.py generation/test_sampling.py generation/test_loss.py "
        "generation/test_parallel_decoding.py",
        {
            "self.features(subtokens.flatten(1, 3)[:, :-1]": "self.features(subtokens.flatten(1, 3)[:, 1:]",
            "grid_positions(grid, subtokens.device)[first : first + subtokens.shape[1]]": "grid_positions(grid, "
            "subtokens.device)[: subtokens.shape[1]]",
            "(i - known) / (subtokens.shape[1] - known)": "i / subtokens.shape[1]",
            "uniform_noise(seed, numbers, i, (": "uniform_noise(seed, numbers, i - known, (",
        },
    ),
    *_of(
        "generation/factorize.py",
        "generation/test_factorize.py",
        {
            "smallest = sizes.index(min(sizes))": "smallest = sizes.index(max(sizes))",
            "runs.append(_Run(math.prod(levels[:j]), weight, levels[j]))": "runs.append(_Run(math.prod(levels[:j]), 1, "
            "levels[j]))",
            "subtoken // run.in_subtoken % run.size * run.in_id": "subtoken % run.size * run.in_id",
        },
    ),
    *_of(
        "nn/causal.py",
        "nn/test_causal.py",
        {
            'first = x[:1] if self.start in ("repeat", "copy") else': 'first = x[:1] if self.start == "zero" else',
            "stream.put(self, frames[count * self.time_stride :])": "stream.put(self, frames[-len(self.past) :])",
            "if self.first_phase else y[s - 1 :]": "if self.first_phase else y[: len(y) - s + 1]",
            "torch.cat([y[:1], y[s:]]) if": "y[s - 1 :] if",
            "y.unflatten(2, (s, -1)).transpose(1, 2)": "y.unflatten(2, (-1, s)).transpose(2, 3).transpose(1, 2)",
            "[stride * x.shape[0] - size[0] :] if stride > 1": "[: size[0]] if stride > 1",
            "nn.init.zeros_(tap.weight)": "nn.init.ones_(tap.weight)",
            "y = y + self._tap(tap, frames, k, count)": "y = y + self._tap(tap, frames, k + 1, count)",
            "count = len(self.past) + 1 - self.time_stride if": "count = len(self.past) if",
            "(*self.past, self.now)": "(*reversed(self.past), self.now)",
        },
    ),
    *_of(
        "nn/blocks.py",
        "nn/test_norm.py tokenizer/test_tokenizer.py families/test_magicmaster.py",
        {
            "_EPS = 1e-6\n": "_EPS = 1e-5\n",
            "_EPS_POOLED = 1e-5\n": "_EPS_POOLED = 1e-6\n",
            "torch.addcmul(shift, self.norm(x), 1 + scale)": "torch.addcmul(shift, self.norm(x), scale)",
            "scale, shift = maps.chunk(2, 2)": "shift, scale = maps.chunk(2, 2)",
            "codes = codes.mean((0, 3, 4), keepdim=True)": "codes = codes.mean((3, 4), keepdim=True)[:1]",
            "nn.init.zeros_(self.conv2.now.weight)": "pass",
            "self.groups = math.gcd(channels, groups)": "self.groups = 1",
            "return y + (x if self.skip is None else self.skip(x))": "return y + (0 if self.skip is None else "
            "self.skip(x))",
        },
    ),
    *_of(
        "quantize/fsq.py",
        "quantize/test_quantizers.py quantize/test_goldens.py",
        {
            "0.5 if level % 2 == 0 else 0.0": "0.0",
            "(half * torch.tanh(z + shift) - offset) / step": "(half * torch.tanh(z + shift)) / step",
            "math.atanh((k + 0.5 + offset) / half) - shift": "math.atanh((k + 0.5 + offset) / half) + shift",
            "[(digit - step) / step for digit in range(level)]": "[(digit - step) / (level / 2) for digit in "
            "range(level)]",
        },
    ),
    *_of(
        "quantize/lfq.py",
        "quantize/test_quantizers.py quantize/test_goldens.py",
        {"return (z > 0).long()": "return (z >= 0).long()", "[[-1.0, 1.0]]": "[[0.0, 1.0]]"},
    ),
    *_of(
        "quantize/dsq.py",
        "quantize/test_quantizers.py quantize/test_goldens.py families/test_magicmaster.py",
        {
            "_LEAST_WIDTH = 1e-3": "_LEAST_WIDTH = -1e9",
            "widths = 2 * logits.softmax(1)": "widths = logits.softmax(1)",
            "widths.cumsum(1) - widths, widths": "widths.cumsum(1), widths",
            "(knots + widths / 2).masked_fill": "(knots + widths).masked_fill",
            "values * self.scale_out + self.bias": "(values + self.bias) * self.scale_out",
            "step = 2.0 / bins.double()": "step = 2.0 / (bins.double() + 1)",
        },
    ),
    *_of(
        "quantize/entropy.py",
        "quantize/test_entropy.py",
        {
            "return -(log_p.exp() * log_p).sum((1, 2)).mean()": "return -(log_p.exp() * log_p).sum(2).mean()",
            "(2 * rows * values - values.square()) / temperature": "(2 * rows * values - values.square()) * "
            "temperature",
            "(2 * rows * values - values.square())": "(2 * rows * values)",
            "logits = logits.masked_fill(absent, _ABSENT)": "pass",
            "weighted = (joint_b @ gradient.T * joint_a, joint_a @ gradient * joint_b)": "weighted = (joint_b @ "
            "gradient.T, joint_a @ gradient)",
            "return total / count": "return total",
        },
    ),
    *_of(
        "metrics/pixel.py",
        "metrics/test_pixel.py",
        {
            "_K1, _K2 = 0.01, 0.03": "_K1, _K2 = 0.03, 0.01",
            "_gaussian(1.5, 5), 1.0, reflect=False": "_gaussian(1.4, 5), 1.0, reflect=False",
            "(1 / 7,) * 7, 49 / 48": "(1 / 7,) * 7, 1.0",
            "10 * torch.log10(data_range**2 / error)": "20 * torch.log10(data_range / error)",
            "clamp_min(0) ** beta": "abs() ** beta",
            "term = similarity if scale == len(_SCALES) - 1 else contrast": "term = similarity",
            'pixels.round() if rounding == "round"': '(pixels + 0.5).floor() if rounding == "round"',
            "clamp(0, 255).floor().double()": "clamp(0, 255).round().double()",
            "contrast = (2 * covariance + c2)": "contrast = (covariance + c2)",
        },
    ),
    *_of(
        "metrics/codebook.py",
        "metrics/test_codebook.py",
        {
            "return -codebook_size * math.expm1(n * math.log1p(-1 / codebook_size))": "return float(min(n, "
            "codebook_size))",
            "rest = rest // level": "rest = rest // 2",
            "(counts * torch.log2(counts)).sum() / n": "torch.log2(counts).sum() / n",
            "perplexity=2.0**entropy": "perplexity=entropy",
            "math.exp(-codebook_size / n * mean)": "math.exp(-mean / n)",
            "entropy * tokens / pixels if pixels": "entropy / pixels if pixels",
        },
    ),
    *_of(
        "metrics/frechet.py",
        "metrics/test_frechet.py metrics/test_distance.py",
        {
            "self.scatter / (self.n - 1)": "self.scatter / self.n",
            "torch.outer(delta, delta) * (self.n * n / total)": "torch.outer(delta, delta)",
            "self.mean + delta * (n / total)": "self.mean + delta / 2",
            "cov_b.trace() - 2 * overlap": "cov_b.trace() - overlap",
            "if fewest <= a.dim else None": "if fewest < a.dim else None",
        },
    ),
    *_of(
        "metrics/precision_recall.py",
        "metrics/test_precision_recall.py",
        {
            "part.topk(k + 1, 1, largest=False)": "part.topk(k, 1, largest=False)",
            "part <= hoods.radii if closed else part < hoods.radii": "part < hoods.radii",
            ".double().mean().item() / real.k": ".double().mean().item()",
            "_share_above_zero(counts.vectors)": "_share_above_zero(counts.neighbourhoods)",
        },
    ),
    *_of(
        "codec/contexts.py",
        "codec/test_entropy.py codec/test_format.py",
        {
            "_FIRST, _ALONE, _BOTH = 4, 16, 32": "_FIRST, _ALONE, _BOTH = 4, 16, 33",
            "1 + (4 * total + count) // np.maximum(1, 2 * count)": "1 + (4 * total) // np.maximum(1, 2 * count)",
            "product = time[:, None] * space // anywhere": "product = time[:, None] + 0 * space",
            "corners = ((-step, -step)": "corners = ((-step, step)",
            "self._counts += seen.reshape(self._counts.shape)": "self._counts = seen.reshape(self._counts.shape)",
        },
    ),
    *_of(
        "codec/entropy.py",
        "codec/test_entropy.py codec/test_format.py",
        {
            "PRECISION = 24": "PRECISION = 23",
            "table[..., 0] += total": "table[..., -1] += total",
            "before = planes[k, t - 1].reshape(-1) if t else None": "before = None",
            "(counts * _TABLE_PEAK + peak // 2) // peak": "counts * _TABLE_PEAK // peak",
            "self.bits += 8 * weights.size": "pass",
            "digit += planes[at] * place": "digit += planes[at]",
        },
    ),
    *_of(
        "tokenizer/tiles.py",
        "tokenizer/test_tokenizer.py tokenizer/test_inputs.py",
        {
            "min(size, end + margin)": "min(size, end)",
        },
    ),
    *_of(
        "tokenizer/tokenizer.py",
        "tokenizer/test_tokenizer.py tokenizer/test_inputs.py",
        {
            "first + (waiting.shape[2] - first) // s * s": "(waiting.shape[2] - first) // s * s",
            "left -= video.shape[2]": "left -= 0",
            "margin = -(-(self.encoder.reach or 0) // stride) * stride": "margin = 0",
            "Tiles(tile // stride, self.decoder.reach or 0, up=stride)": "Tiles(tile // stride, 0, up=stride)",
        },
    ),
    *_of(
        "tokenizer/inflate.py",
        "tokenizer/test_inflate.py",
        {
            "weight.repeat(target.shape[0] // weight.shape[0]": "weight.repeat_interleave(target.shape[0] // "
            "weight.shape[0], 0).repeat(1"
        },
    ),
    *_of(
        "video.py",
        "base/test_video.py",
        {
            "/ 127.5 - 1).contiguous()": "/ 128 - 1).contiguous()",
            "levels.round().to(torch.uint8)": "levels.to(torch.uint8)",
            "clamp(max=old - 1)": "remainder(old)",
            "return video[:, :, :t, :h, :w]": "return video[:, :, -t:, :h, :w]",
            "(-(-(n - lead) // s) * s + lead": "((n - lead) // s * s + lead",
        },
    ),
    *_of(
        "data/shuffle.py",
        "data/test_order.py",
        {
            "while number >= self.length:": "if number >= self.length:",
            "tuple(mix(self.seed, epoch, i) for i": "tuple(mix(self.seed, 0, i) for i",
            "max(4, (length - 1).bit_length())": "max(4, length.bit_length() - 1)",
            "mix(seed, epoch, index) >> 1": "mix(seed, index) >> 1",
        },
    ),
    *_of(
        "data/views.py",
        "data/test_views.py",
        {
            "return min(width, height * new_width / new_height)": "return min(width, height * new_height / new_width)",
            "min(room, int(place * (room + 1)))": "min(room, int(place * room))",
            "self.flip and random_flip < 0.5": "self.flip",
            "self.scale[0] + (self.scale[1] - self.scale[0]) * random_scale": "self.scale[0] + self.scale[1] * "
            "random_scale",
            "(0.5 if x is None else x) * (width - box_w)": "(0.5 if x is None else x) * width",
        },
    ),
)
"""All mutants, by file."""
