"""Attention, frequencies, likeness and probes of layers: closed forms and other libraries."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import planted_subject
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import mutual_info_score

from ssl_core import models
from ssl_core.analyse import _tokens, attention, cka, fourier, layerwise
from ssl_core.analyse._subject import Subject
from ssl_core.config import Analyse
from ssl_core.errors import HeadwaterError
from ssl_core.evaluate import knn, linear

RNG = np.random.default_rng
CFG = Analyse(images=24)


def attentive(*shape: int, seed: int = 0, sharp: float = 2.0) -> torch.Tensor:
    """Random attention whose rows sum to one, float64."""
    logits = sharp * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    return logits.softmax(-1)


@pytest.fixture(scope="module")
def vit() -> Subject:
    return planted_subject.subject()


@pytest.fixture(scope="module")
def cnn() -> Subject:
    return planted_subject.subject(kind="cnn")


# ---- what is read out --------------------------------------------------------------------------


@torch.inference_mode()
def test_the_last_layer_of_a_vit_is_its_output_before_the_norm(vit: Subject) -> None:
    x = vit.inputs(np.arange(5))
    found = {layer.name: layer for layer in _tokens.layers(vit.encoder, x, halves=True)}
    assert list(found) == ["0", "1/attention", "1", "2/attention", "2"]
    last = found["2"]
    tokens = torch.cat([last.prefix, last.maps.flatten(1, 2)], 1)
    out = vit.encoder.model.norm(tokens)
    want = vit.encoder(x)
    torch.testing.assert_close(out[:, 1:].unflatten(1, (8, 8)), want.patch)
    torch.testing.assert_close(out[:, 0], want.pooled)
    block, half = vit.encoder.model.blocks[1], found["2/attention"]
    middle = torch.cat([half.prefix, half.maps.flatten(1, 2)], 1)
    torch.testing.assert_close(middle + block.mlp(block.norm2(middle)), tokens)


@torch.inference_mode()
def test_the_last_stage_of_a_cnn_is_its_output(cnn: Subject) -> None:
    x = cnn.inputs(np.arange(3))
    found = _tokens.layers(cnn.encoder, x)
    assert [layer.maps.shape[1] for layer in found] == [16, 8, 4, 2, 1]
    torch.testing.assert_close(found[-1].maps, cnn.encoder(x).patch)
    torch.testing.assert_close(_tokens.pooled(cnn.encoder, found[-1]), cnn.encoder(x).pooled)


@torch.inference_mode()
def test_stages_with_channels_last_are_read_as_such() -> None:
    args = {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    net = models.create("swin_tiny_patch4_window7_224", args).eval()
    x = torch.randn(2, 3, 64, 64)
    assert [tuple(s.maps.shape[1:]) for s in _tokens.layers(net, x)] == [(16, 16, 8), (8, 8, 16)]
    assert not _tokens.has_attention(net)


def test_a_vit_without_class_token_pools_its_patches() -> None:
    args = {"class_token": False, "global_pool": "avg"}
    net = planted_subject.encoder("vit", **args)
    layer = _tokens.Layer("1", torch.randn(3, 8, 8, 24), torch.zeros(3, 0, 24))
    torch.testing.assert_close(_tokens.pooled(net, layer), layer.maps.mean((1, 2)))


@torch.inference_mode()
def test_attention_is_softmax_of_queries_and_keys_and_changes_no_output(vit: Subject) -> None:
    x, net = vit.inputs(np.arange(4)), vit.encoder
    plain = net(x).patch
    found = _tokens.attentions(net, x)
    torch.testing.assert_close(net(x).patch, plain)
    tokens = _tokens.layers(net, x)[0]
    flat = torch.cat([tokens.prefix, tokens.maps.flatten(1, 2)], 1)
    block = net.model.blocks[0]
    q, k, _ = block.attn.qkv(block.norm1(flat)).view(4, 65, 3, 2, 12).permute(2, 0, 3, 1, 4)
    want = (q @ k.mT / 12**0.5).softmax(-1)
    torch.testing.assert_close(found[0], want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1].sum(-1), torch.ones(4, 2, 65))


def test_batches_bounded_by_memory_give_the_same(
    vit: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = vit.draw(20)
    whole = attention.measures(vit, rows)
    monkeypatch.setattr(_tokens, "BYTES", 3 * 4 * 2 * 2 * 65 * 65)
    sizes = [len(part) for part, _ in _tokens.stream(vit, rows, _tokens.attentions)]
    assert sizes == [3] * 6 + [2]
    for name, values in attention.measures(vit, rows).items():
        torch.testing.assert_close(values, whole[name], atol=1e-5, rtol=1e-4)


# ---- attention ---------------------------------------------------------------------------------


def test_attention_distance_closed_forms() -> None:
    even, still = torch.full((196, 196), 1 / 196).double(), torch.eye(196).double()
    assert float(attention.distance(even, (14, 14), 16)) == pytest.approx(116.4922, abs=1e-3)
    assert float(attention.distance(still, (14, 14), 16)) == 0
    far = torch.zeros(196, 196).double()
    far[:, 0] = 1  # everyone looks at the first corner
    corner = attention.gaps((14, 14), 16)[:, 0]
    assert float(corner.max()) == pytest.approx(294.1564, abs=1e-3)
    assert float(attention.distance(far, (14, 14), 16)) == pytest.approx(float(corner.mean()))
    ring = still.view(14, 14, 196).roll(1, 1)[:, 1:].reshape(-1, 196)  # without the wrapped ones
    gaps = attention.gaps((14, 14), 16).view(14, 14, 196)[:, 1:].reshape(-1, 196)
    assert float((ring * gaps).sum(-1).unique()) == 16


def test_attention_distance_by_brute_force_on_an_oblong_grid() -> None:
    weights = attentive(2, 3, 15, 15)
    want = np.zeros((2, 3))
    places = list(itertools.product(range(3), range(5)))
    for (q, (y, x)), (k, (v, u)) in itertools.product(enumerate(places), repeat=2):
        want += weights[:, :, q, k].numpy() * 8 * np.hypot(y - v, x - u) / 15
    np.testing.assert_allclose(attention.distance(weights, (3, 5), 8), want)


def test_information_is_scikit_learns_mutual_information() -> None:
    shares = attentive(4, 12, 12).numpy()
    counts = np.stack([RNG(i).multinomial(10_000, head) for i, head in enumerate(shares)])
    found = attention.information(torch.from_numpy(counts / 10_000))
    for value, joint in zip(found, counts, strict=True):
        shared = mutual_info_score(None, None, contingency=joint)
        want = shared / np.sqrt(np.log(12) * scipy_entropy(joint.sum(0)))
        assert float(value) == pytest.approx(want, abs=1e-5)
        assert 0.05 < want < 0.95


def test_information_closed_forms() -> None:
    assert float(attention.information(torch.eye(49).double())) == pytest.approx(1, abs=1e-4)
    same = attentive(1, 49).expand(49, 49)
    assert float(attention.information(same)) == pytest.approx(0, abs=1e-7)
    weights = attentive(4, 3, 20, 20, sharp=4)
    found = attention.information(weights)
    assert ((found > 0) & (found < 1)).all()
    order = torch.randperm(20)
    torch.testing.assert_close(attention.information(weights[..., order]), found)
    torch.testing.assert_close(attention.information(weights[..., order, :]), found)


def test_entropy_is_a_share_of_the_largest() -> None:
    weights = attentive(2, 3, 12, 12)
    want = scipy_entropy(weights.numpy(), axis=-1).mean(-1) / np.log(12)
    np.testing.assert_allclose(attention.entropy(weights), want)
    assert float(attention.entropy(torch.eye(9).double())) == 0
    assert float(attention.entropy(torch.full((9, 9), 1 / 9).double())) == pytest.approx(1)


def test_diversity_is_the_jensen_shannon_divergence_of_heads() -> None:
    weights = attentive(3, 2, 10, 10)
    first, second = weights[:, 0].numpy(), weights[:, 1].numpy()
    want = jensenshannon(first, second, axis=-1, base=2) ** 2
    np.testing.assert_allclose(attention.diversity(weights), want.mean(-1))
    alike = weights[:, :1].expand(3, 4, 10, 10)
    np.testing.assert_allclose(attention.diversity(alike), 0, atol=1e-12)
    apart = torch.eye(4).double().view(1, 4, 1, 4).expand(1, 4, 4, 4)
    assert float(attention.diversity(apart)) == pytest.approx(1)
    assert attention.diversity(weights[:, :1]).isnan().all()


def test_prefix_tokens_are_left_out_and_rows_sum_to_one_again() -> None:
    kept = attention.patches(attentive(2, 3, 7, 7), 2)
    assert kept.shape == (2, 3, 5, 5)
    torch.testing.assert_close(kept.sum(-1), torch.ones(2, 3, 5).double())


def test_heads_that_attend_evenly_are_found_so_in_a_whole_encoder() -> None:
    subject = planted_subject.subject()
    for block in subject.encoder.model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)  # equal logits everywhere
        torch.nn.init.zeros_(block.attn.qkv.bias)
    found = {(r["slice"], r["metric"]): r["value"] for r in attention.run(subject, CFG).rows}
    even = torch.full((64, 64), 1 / 64).double()
    want = float(attention.distance(even, (8, 8), 4))
    for layer in ("layer:1", "layer:2"):
        assert found[layer, "attention_distance_px"] == pytest.approx(want, rel=1e-5)
        assert found[f"{layer}/head:2", "attention_distance_px"] == pytest.approx(want, rel=1e-5)
        assert found[layer, "attention_entropy"] == pytest.approx(1, abs=1e-5)
        assert found[layer, "attention_nmi"] == pytest.approx(0, abs=1e-5)
        assert found[layer, "attention_head_diversity"] == pytest.approx(0, abs=1e-5)
        assert found[layer, "attention_to_prefix"] == pytest.approx(1 / 65, abs=1e-5)


# ---- frequencies -------------------------------------------------------------------------------


def test_amplitudes_closed_forms() -> None:
    constant = torch.ones(1, 14, 14, 1)
    assert float(fourier.amplitudes(constant)[0, -1]) == pytest.approx(-19.0936, abs=1e-3)
    impulse = torch.zeros(1, 14, 14, 1)
    impulse[0, 3, 5] = 2
    np.testing.assert_allclose(fourier.amplitudes(impulse), 0, atol=1e-5)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    checks = (1 - 2 * ((x + y) % 2)).view(1, 8, 8, 1)  # all at half the sampling rate
    np.testing.assert_allclose(fourier.amplitudes(checks), 0, atol=1e-5)
    wave = torch.cos(2 * torch.pi * 2 * (x + y).double() / 8).view(1, 8, 8, 1)
    found = fourier.amplitudes(wave)[0]
    peak = np.log(64 / 2 + 1e-6) - np.log(1e-6)  # a cosine of 64 places, none in the mean
    np.testing.assert_allclose(found, [0, 0, peak, 0], atol=1e-4)


def test_white_noise_has_half_log_two() -> None:
    noise = torch.randn(256, 14, 14, 64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fourier.amplitudes(noise).mean(0)[1:], np.log(2) / 2, atol=0.03)


@pytest.mark.parametrize("side", [7, 14])
def test_amplitudes_are_the_shifted_spectrum_from_its_middle(side: int) -> None:
    maps = RNG(0).normal(size=(3, side, side, 5))
    spectrum = np.fft.fftshift(np.log(np.abs(np.fft.fft2(maps, axes=(1, 2))) + 1e-6), (1, 2))
    middle = side // 2
    diagonal = [spectrum[:, i, i].mean(-1) for i in range(middle, side)]
    want = np.stack(diagonal, 1) - diagonal[0][:, None]
    np.testing.assert_allclose(fourier.amplitudes(torch.from_numpy(maps)), want)


def test_smoother_maps_lie_lower() -> None:
    noise = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1).permute(0, 2, 3, 1)
    rough = fourier.amplitudes(noise.permute(0, 2, 3, 1)).mean(0)
    assert (fourier.amplitudes(smooth).mean(0)[1:] < rough[1:]).all()


def test_an_encoder_without_a_grid_of_places_has_no_frequencies() -> None:
    subject = planted_subject.subject(patch_size=16)
    finding = fourier.run(subject, CFG)
    assert not finding.rows
    assert "4 cells a side" in finding.missing


# ---- likeness ----------------------------------------------------------------------------------


def brute_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic of HSIC over all ordered quadruples (Song et al. 2012)."""
    n, total = len(k), 0.0
    quads = list(itertools.permutations(range(n), 4))
    for i, j, q, r in quads:
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / len(quads)


def test_hsic_is_the_u_statistic_and_takes_no_notice_of_the_mean() -> None:
    rng = RNG(0)
    x, y = rng.normal(size=(7, 3)) + 4, rng.normal(size=(7, 5))
    kernels = [cka.kernel(torch.from_numpy(f)) for f in (x, y)]
    found = cka.hsic(kernels, kernels)
    want = [[brute_hsic(a @ a.T, b @ b.T) for b in (x, y)] for a in (x, y)]
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


def one(x: np.ndarray, y: np.ndarray) -> float:
    return float(cka.cka([cka.sums([torch.from_numpy(x)], [torch.from_numpy(y)])])[0, 0])


def test_cka_is_one_up_to_rotation_and_scale_and_zero_by_chance() -> None:
    rng = RNG(0)
    x = rng.normal(size=(40, 10))
    turn, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    assert one(x, 3 * x @ turn + 1) == pytest.approx(1)
    y = rng.normal(size=(40, 6))
    assert one(x, y) == pytest.approx(one(y, x))
    draws = [one(rng.normal(size=(100, 10)), rng.normal(size=(100, 10))) for _ in range(100)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 10
    assert np.mean(draws) < 0.02  # the biased estimate gives 0.10


def test_batches_are_summed_before_the_division() -> None:
    rng = RNG(1)
    parts = []
    for scale in (1.0, 10.0):
        x = scale * rng.normal(size=(12, 4))
        y = x @ rng.normal(size=(4, 3)) if scale > 1 else rng.normal(size=(12, 3))
        parts.append(cka.sums([torch.from_numpy(x)], [torch.from_numpy(y)]))
    both, first, second = (sum(p[i].item() for p in parts) for i in range(3))
    found = float(cka.cka(parts)[0, 0])
    assert found == pytest.approx(both / np.sqrt(first * second))
    assert abs(found - np.mean([cka.cka([p])[0, 0] for p in parts])) > 0.05


def test_a_dead_layer_has_no_likeness_and_too_few_images_are_refused() -> None:
    x = torch.randn(8, 3)
    assert np.isnan(cka.cka([cka.sums([x], [torch.ones(8, 2)])])).all()
    with pytest.raises(HeadwaterError, match="too few for CKA"):
        cka.sums([x[:3]], [x[:3]])


def test_an_encoder_is_like_itself_and_layers_are_named(vit: Subject, cnn: Subject) -> None:
    found = {(r["slice"], r["metric"]): r["value"] for r in cka.between(vit, vit, CFG).rows}
    for layer in ("layer:0", "layer:1", "layer:2"):
        assert found[layer, "cka_nearest"] == pytest.approx(1)
    assert found["all", "cka_last"] == pytest.approx(1)
    other = {(r["slice"], r["metric"]): r["value"] for r in cka.between(vit, cnn, CFG).rows}
    assert 0 < other["all", "cka_last"] < 0.99
    moved = replace(cnn, rows=replace(cnn.rows, sha256=cnn.rows.sha256[::-1]))
    with pytest.raises(HeadwaterError, match="different images"):
        cka.between(vit, moved, CFG)


# ---- probes of layers --------------------------------------------------------------------------


def test_layerwise_rows_are_the_probes_on_those_features(vit: Subject) -> None:
    rows = {(r["slice"], r["metric"]): r for r in layerwise.run(vit, CFG).rows}
    out = vit.rows.features
    train, test = vit.train, vit.test
    for metric, module in (("linear_accuracy", linear), ("knn_accuracy", knn)):
        want = (module.predict(train, out[~vit.is_train]) == test.labels).mean()
        assert rows["layer:output", metric]["value"] == pytest.approx(want)
    features = layerwise.features(vit, np.arange(8))
    assert list(features) == ["0", "1", "2", "output"]
    with torch.inference_mode():
        x = vit.inputs(np.arange(8))
        embedded = vit.encoder.embed(models.Crops(x))
        first = vit.encoder.model.blocks[0](embedded)
    np.testing.assert_allclose(features["1"], first[:, 0], atol=1e-5)
    np.testing.assert_allclose(features["0"], embedded[:, 1:].mean(1), atol=1e-5)


def test_a_layer_that_loses_everything_is_found() -> None:
    subject = planted_subject.subject(kind="cnn", count=240)
    with torch.no_grad():
        for module in subject.encoder.model.layer4.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.zero_()  # constant from here on
    rows = layerwise.run(subject, CFG).rows
    found = {(r["slice"], r["metric"]): r["value"] for r in rows}
    assert found["layer:5", "linear_accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["layer:4", "linear_accuracy"] > 0.5
    assert found["all", "linear_best_depth"] < 1


def test_deep_encoders_are_probed_at_evenly_spaced_layers() -> None:
    names = layerwise._spread([str(i) for i in range(25)])
    assert len(names) == layerwise.MOST
    assert (names[0], names[-1]) == ("0", "24")
    steps = np.diff([int(n) for n in names])
    assert steps.max() - steps.min() <= 1
