"""Mutants of the training step, the losses, the schedules and the discriminators, as in `tests.mutation.mutants`."""

from tests.mutation.mutant import Mutant, mutants_of

TRAINING: tuple[Mutant, ...] = (
    *mutants_of('training/tokenizer_step.py', 'training/test_formulas.py', {
        '(boost if name.endswith("_entropy") else 1)': '1',
        'max(0.0, 1 - state.step / config.entropy_boost_steps)': '1.0',
        'max(0.0, 1 - state.step / config.entropy_boost_steps)': '(1 - state.step / config.entropy_boost_steps)',
        '(boost if name.endswith("_entropy") else 1)': 'boost',
        'factor * settings.penalty_weight * measured': 'settings.penalty_weight * measured',
        'factor * settings.penalty_weight * measured': 'factor * measured',
        'optimizers.append((gan.optimizer, gan.config.optimizer))': 'optimizers.append((gan.optimizer, state.config.optimizer))',
        '            gan.anchors = loss.update_lecam_ema(gan.anchors, means[0], means[1])\n        assert gan.anchors is not None\n        measured["lecam"] = loss.lecam(real, fake, gan.anchors)': '            older = gan.anchors\n            gan.anchors = loss.update_lecam_ema(gan.anchors, means[0], means[1])\n        assert gan.anchors is not None\n        measured["lecam"] = loss.lecam(real, fake, older or gan.anchors)',
        'settings.lecam * measured["lecam"]': 'measured["lecam"]',
        'return weight * settings.share(state.step)': 'return weight',
        'norms = [clip_gradient(module, settings.clip) for': 'norms = [clip_gradient(module, None) for',
        '        state.updates += 1\n    state.step': '    state.step',
        'update_ema(state.ema, state.tokenizer, config.ema_decay(state.updates))': 'update_ema(state.ema, state.tokenizer, config.ema)',
        'settings.lr_at(state.step, state.config.steps)': 'settings.lr_at(state.step + 1, state.config.steps)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_micro_batches_have_the_gradients_of_the_whole[lfq-patch-all]', {
        'zip(("reconstruction", "adversarial"), gradients': 'zip(("adversarial", "reconstruction"), gradients',
        '(at_pixels * part.share)': 'at_pixels',
        'weights[name] * part.share': 'weights[name]',
        'torch.autograd.backward(objective * share,': 'torch.autograd.backward(objective,',
        'sums[name] + value * part.share if name in sums else value * part.share': 'sums[name] + value if name in sums else value',
        'gan.anchors = loss.update_lecam_ema(gan.anchors, *whole.logits)': 'pass',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_micro_batches_have_the_adversarial_weight_of_a_step_of_the_ramp', {
        'scale=gan.config.weight) * gan.config.share(state.step)': 'scale=gan.config.weight)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_a_batch_norm_sees_its_part_and_the_gradients_are_the_mean_of_the_parts', {
        '    _restore(state, averages)\n    means = {name': '    means = {name',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_ranks_have_the_gradients_of_the_whole_whatever_rows_each_of_them_has', {
        'world.mean(mean * part.share) if world.size': 'world.mean(mean) if world.size',
        'state.world.mean(mean_code * part.share) + (mean': 'state.world.mean(mean_code) + (mean',
        'not alternate and share > 0 and _opposed': 'not alternate and _opposed',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_micro_batches_have_the_gradients_of_the_whole[lfq-none-fixed]', {
        'return lambda mean_code: code + (mean_code - mean_code.detach())': 'return lambda mean_code: mean_code',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_the_hinge_gives_both_players_their_own_gradients_whether_or_not_fakes_are_beyond_it', {
        'bool((fake > -1).all())': 'bool((fake > -2).all())',
        'bool((fake > -1).all())': 'True',
        'pixels.grad * (-2 / share)': 'pixels.grad * (-1 / share)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_gradients_equal_those_of_two_forwards_and_two_passes training/test_cut.py::test_micro_batches_have_the_gradients_of_the_whole[lfq-patch-all]', {
        'and not settings.lecam and bool': 'and bool',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_alternating_players_equal_two_plain_steps_one_after_the_other', {
        '        _move(state, gan)\n        adversarial': '        adversarial',
        '    norm = clip_gradient(gan.discriminator, gan.config.optimizer.clip)': '    norm = clip_gradient(gan.discriminator, None)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_a_batch_that_is_not_finite_moves_nothing', {
        '    if not skipped:\n        update_ema': '    if True:\n        update_ema',
        '    if skipped:\n        _restore(state, averages)': '    if False:\n        _restore(state, averages)',
        '        if not skipped:\n            optimizer.step()': '        if True:\n            optimizer.step()',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_the_psnr_of_a_step_is_that_of_clamped_pixels', {
        'means["squared_error"] / 4)': 'means["squared_error"])',
        '(pixels.clamp(-1, 1) - video)': '(pixels - video)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_cut.py::test_dropped_differences_of_lpips_are_those_of_a_clip_and_not_of_a_part', {
        'mix(state.config.seed, state.step, 1, place, frame)': 'mix(state.config.seed, state.step, 1, frame)',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_real_samples_are_scored_in_float32_where_there_is_a_penalty', {
        'and not _penalty_factor(state, gan.config)': '',
    }),
    *mutants_of('training/tokenizer_step.py', 'training/test_step.py::test_before_its_start_the_discriminator_is_not_touched', {
        'if gan is not None and gan.config.share(state.step) > 0:\n            gan_losses': 'if gan is not None:\n            gan_losses',
    }),
    *mutants_of('training/parts.py', 'training/test_cut.py::test_a_row_has_the_frame_of_its_place', {
        'numbers[list(places)]': 'numbers[: len(places)]',
    }),
    *mutants_of('training/parts.py', 'training/test_cut.py::test_ranks_have_the_gradients_of_the_whole_whatever_rows_each_of_them_has', {
        'count = min(state.config.accumulate, max(rows))': 'count = min(state.config.accumulate, min(rows))',
        'share = len(part) * world.size / sum(rows)': 'share = len(part) / sum(rows)',
    }),
    *mutants_of('training/parts.py', 'training/test_cut.py::test_micro_batches_have_the_gradients_of_the_whole[lfq-style-all-all] training/test_cut.py::test_micro_batches_have_the_gradients_of_the_whole[lfq-style-all]', {
        'strides = group if whole else 1': 'strides = 1',
    }),
    *mutants_of('training/parts.py', 'training/test_cut.py::test_bad_rows_leave_parts_of_several_sizes_and_the_gradients_of_the_rest', {
        'share = len(part) * world.size / sum(rows)': 'share = 1 / count',
    }),
    *mutants_of('training/parts.py', 'training/test_ranks.py', {
        'range(world.rank, world.rank + mine * world.size, world.size)': 'range(mine)',
    }),
    *mutants_of('training/config.py', 'training/test_generator_run.py::test_the_rates_and_the_average_of_a_generator_are_the_formulas_written_out', {
        'return min(self.ema, (1 + updates) / (10 + updates))': 'return self.ema',
    }),
    *mutants_of('training/config.py', 'training/test_formulas.py', {
        'return min(self.ema, (1 + n) / (10 + n)) if': 'return self.ema if',
        'self.lr * (step + 1) / self.warmup': 'self.lr * step / self.warmup',
        '(step - self.warmup) / max(1, steps - self.warmup)': 'step / max(1, steps)',
        'self.final + (1 - self.final) * 0.5': 'self.final + 0.5',
        '(step - self.start + 1) / self.ramp': '(step - self.start) / self.ramp',
        'if step < self.start:\n            return 0.0': 'if step <= self.start:\n            return 0.0',
    }),
    *mutants_of('training/config.py', 'training/test_step.py::test_the_decay_of_the_average_is_the_closed_form', {
        '        if updates < self.ema_start:\n            return 0.0\n': '',
        '1 - math.exp(-n / 2000)': '1 - math.exp(-n / 200)',
    }),
    *mutants_of('training/optimizer.py', 'training/test_formulas.py training/test_weight_decay.py', {
        '"weight_decay": config.weight_decay}': '"weight_decay": 0.0}',
        'if p not in decayed], "weight_decay": 0.0}': 'if p not in decayed], "weight_decay": config.weight_decay}',
    }),
    *mutants_of('training/optimizer.py', 'training/test_formulas.py', {
        'list(live.parameters()), 1 - decay)': 'list(live.parameters()), decay)',
        'betas=config.betas': 'betas=(0.9, 0.999)',
        '    if limit:\n': '    if False:\n',
    }),
    *mutants_of('training/optimizer.py', 'training/test_run.py::test_a_run_stopped_by_a_signal_saves_and_goes_on_to_the_same_bits', {
        'for kind in ("step", "exp_avg", "exp_avg_sq")': 'for kind in ("step", "exp_avg")',
    }),
    *mutants_of('losses/functions.py', 'training/test_formulas.py', {
        'decay: float = 0.999': 'decay: float = 0.9',
    }),
    *mutants_of('losses/functions.py', 'losses/test_losses.py training/test_formulas.py', {
        '0.5 * F.relu(1 - widen(real)).mean() + 0.5': 'F.relu(1 - widen(real)).mean() + 0.5',
        '0.5 * F.relu(1 + widen(fake)).mean()': '0.5 * F.relu(widen(fake)).mean()',
    }),
    *mutants_of('losses/functions.py', 'losses/test_losses.py', {
        'return -widen(fake).mean()': 'return F.relu(-widen(fake)).mean()',
        'F.softplus(-widen(real)).mean() +': 'F.softplus(widen(real)).mean() +',
        'return F.softplus(-widen(fake)).mean()': 'return F.softplus(widen(fake)).mean()',
        'torch.autograd.grad(widen(logits).sum(), video': 'torch.autograd.grad(widen(logits).mean(), video',
        'return norms.square().mean()': 'return norms.square().mean() / 2',
        '(norms - 1).square().mean()': 'norms.square().mean()',
        'return every if step % every == 0 else 0': 'return 1 if step % every == 0 else 0',
        'F.relu(widen(real) - anchors.fake)': 'F.relu(widen(real) - anchors.real)',
        'F.relu(anchors.real - widen(fake))': '(anchors.real - widen(fake))',
        '(grad_adversarial_norm.detach() + eps)': 'grad_adversarial_norm.detach()',
        'scale * ratio.clamp(0, limit)': 'scale * ratio',
        'limit: float = 1e4': 'limit: float = 1e3',
        'eps: float = 1e-4': 'eps: float = 1e-6',
        'for name, loss in losses.items()]).sum()': 'for name, loss in losses.items()]).mean()',
        '(widen(recon) - widen(video)).abs().mean()': '(widen(recon) - widen(video)).abs().sum()',
    }),
    *mutants_of('discriminators/magvit3d.py', 'discriminators/test_discriminators.py::test_the_3d_one_is_the_papers_network', {
        '(_leaky_relu(self.outer(main)) + side) / math.sqrt(2)': '(_leaky_relu(self.outer(main)) + side)',
        'side = self.skip(halve(features, (4, 3, 2)))': 'side = self.skip(features[:, :, ::2, ::2, ::2])',
        'F.leaky_relu(features, 0.2)': 'F.leaky_relu(features, 0.01)',
        'features.mean(dim=2)': 'features.amax(dim=2)',
        'self.logit(_leaky_relu(self.hidden(': 'self.logit((self.hidden(',
        'main = halve(_leaky_relu(self.inner(features)), (4, 3, 2))': 'main = halve(self.inner(features), (4, 3, 2))',
    }),
    *mutants_of('discriminators/magvit3d.py', 'discriminators/test_discriminators.py::test_kaiming_weights_have_their_deviation_and_biases_are_zero', {
        'kaiming_normal_(layer.weight, a=0.2)': 'kaiming_normal_(layer.weight, a=1.0)',
    }),
    *mutants_of('discriminators/magvit2d.py', 'discriminators/test_discriminators.py::test_magvits_2d_one_is_the_released_network', {
        '+ side) / math.sqrt(2)': '+ side)',
        'side = self.skip(halve(features, (3, 2)))': 'side = self.skip(features[..., ::2, ::2])',
        'F.leaky_relu(self.last(self.blocks(features)), 0.2)': 'F.leaky_relu(self.last(self.blocks(features)), 0.01)',
    }),
    *mutants_of('discriminators/frames.py', 'discriminators/test_goldens.py', {
        'return (main + side) / math.sqrt(2)': 'return main + side',
        'F.leaky_relu(features, 0.2) * math.sqrt(2)': 'F.leaky_relu(features, 0.2)',
        'stride=2, padding=1), nn.LeakyReLU(0.2)]': 'stride=2, padding=1), nn.LeakyReLU(0.01)]',
        'layers += [_norm(config.norm, out), nn.LeakyReLU(0.2)]': 'layers += [_norm(config.norm, out), nn.LeakyReLU(0.01)]',
        'self.gain = 1 / math.sqrt(channels * kernel**2)': 'self.gain = 1 / math.sqrt(channels * kernel)',
        'side = self.skip(low_pass(low_pass(features, 2, 2, (1, 1)), 3, 2, (1, 1)))': 'side = self.skip(features[..., ::2, ::2])',
    }),
    *mutants_of('discriminators/frames.py', 'discriminators/test_discriminators.py::test_minibatch_deviation_takes_the_largest_group_that_divides_the_batch', {
        'correction=0) + 1e-8)': 'correction=1) + 1e-8)',
    }),
    *mutants_of('discriminators/frames.py', 'discriminators/test_discriminators.py::test_the_3d_one_is_the_papers_network', {
        'TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)': 'TAPS = (1 / 4, 1 / 4, 1 / 4, 1 / 4)',
    }),
    *mutants_of('discriminators/frames.py', 'discriminators/test_discriminators.py', {
        'math.gcd(32, channels, max(1, channels // 4))': 'math.gcd(32, channels)',
    }),
    *mutants_of('quantize/entropy.py', 'quantize/test_entropy.py', {
        'logits = (2 * rows * values - values.square()) / temperature': 'logits = (2 * rows * values - values.square())',
        'return -(log_p.exp() * log_p).sum((1, 2)).mean()': 'return -(log_p.exp() * log_p).mean((1, 2)).mean()',
    }),
    *mutants_of('quantize/entropy.py', 'quantize/test_entropy_ranks.py', {
        '(_SumOverRanks.apply(x) for x in (total, count))': '(_SumOverRanks.apply(total), count)',
    }),
    *mutants_of('quantize/dsq.py', 'quantize/test_quantizers.py::test_widths_of_dsq_below_a_thousandth_are_a_thousandth', {
        'self.widths.clamp_min(_LEAST_WIDTH)': 'self.widths',
        '_LEAST_WIDTH = 1e-3': '_LEAST_WIDTH = 1e-2',
        'widths = 2 * logits.softmax(1)': 'widths = logits.softmax(1)',
    }),
    *mutants_of('data/loader.py', 'training/test_bad_rows.py::test_a_rank_without_rows_goes_along_with_the_others', {
        'places = tuple(rank + world * row for row in rows.rows)': 'places = rows.rows',
    }),
    *mutants_of('training/tokenizer_task.py', 'training/test_bad_rows.py', {
        'bad > self.share * max(listed, _RECENT)': 'bad > self.share * listed',
        'self._sums()[0] - self._steps[0][0] >= _RECENT': 'self._sums()[0] > _RECENT',
        'or (result.step == empty == config.steps)': '',
        'empty + (not result.rows)': 'empty',
    }),
    *mutants_of('training/generator_step.py', 'training/test_generator_run.py::test_the_rates_and_the_average_of_a_generator_are_the_formulas_written_out', {
        'losses.total * (len(entries) / entries.sum())': 'losses.total',
        'config.ema_decay(state.updates)': 'config.ema',
        'state.updates += 1': 'state.updates += 2',
    }),
    *mutants_of('losses/perceptual.py', 'losses/test_lpips.py::test_dropout_needs_a_generator_and_keeps_the_mean', {
        'square * kept.to(square.device) / (1 - self.dropout)': 'square * kept.to(square.device)',
    }),
)
"""All of them, by file."""
