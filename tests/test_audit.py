"""The audit: labels judged by probes that never saw them, missing metadata, and the way back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import browse, needs_browser
from conftest import headwater
from scipy.stats import binom
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from ssl_core.artifacts import read_json, write_lineage
from ssl_core.audit import label_errors, missing
from ssl_core.commands import trace
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _corrections, audit, correct, ingest, validate
from ssl_core.types import Embeddings

RNG = np.random.default_rng


def digits(count: int = 600) -> Embeddings:
    """Real digits; two neighbours in the file are one group."""
    data, label = load_digits(return_X_y=True)
    keys = np.array([f"{i:064x}" for i in range(count)])
    group = np.array([f"g{i // 2}" for i in range(count)])
    blank = np.full(count, "s")
    names = tuple(str(i) for i in range(10))
    return Embeddings(
        data[:count].astype(np.float32), label[:count].astype(np.int64), names, keys, group, blank
    )


def flipped(e: Embeddings, share: float) -> tuple[Embeddings, np.ndarray]:
    wrong = RNG(0).random(len(e)) < share
    other = (e.labels + RNG(1).integers(1, 10, len(e))) % 10
    return replace(e, labels=np.where(wrong, other, e.labels)), wrong


# ---- label errors ------------------------------------------------------------------------------


def test_folds_keep_groups_whole_and_deal_every_class_out() -> None:
    e = digits()
    label = np.repeat(e.labels[::2], 2)  # one label per group
    fold = label_errors.folds(label, e.groups, 5, 0)
    assert (pd.Series(fold).groupby(e.groups).nunique() == 1).all()
    for c in range(10):
        part = np.bincount(fold[label == c], minlength=5)
        assert part.min() > 0
        assert part.max() - part.min() <= 2  # a group more
    rare = np.where(np.arange(len(e)) < 4, 0, 1)  # two groups of class 0 are in two folds
    assert len(set(label_errors.folds(rare, e.groups, 5, 0)[:4])) == 2


def test_a_label_has_no_say_in_what_is_predicted_of_its_group() -> None:
    e = digits(200)
    first = label_errors.out_of_sample(e, 4)
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)
    fold = label_errors.folds(e.labels, e.groups, 4, 0)
    out = fold == fold[0]
    head = label_errors.linear.fit(label_errors._common.take(e, ~out))
    np.testing.assert_allclose(first[out], head.probabilities(e.features[out]), rtol=1e-6)
    group = e.groups == e.groups[0]
    assert (out & group).sum() == group.sum()
    assert not (~out & group).any()


def test_planted_label_errors_are_found() -> None:
    e, wrong = flipped(digits(), 0.08)
    found = label_errors.find(e, label_errors.out_of_sample(e))
    assert found["sha256"].tolist() == e.sha256.tolist()
    assert average_precision_score(wrong, -found["quality"]) > 0.9
    issue = found["issue"].to_numpy()
    assert (issue & wrong).sum() / wrong.sum() > 0.75
    assert (issue & wrong).sum() / issue.sum() > 0.6
    true = np.array(digits().classes)[digits().labels]
    assert (found["suggested"] == true)[issue & wrong].mean() > 0.9
    assert (found["suggested"] != found["label"]).all()


def test_quality_is_the_given_label_s_probability_and_issues_are_confident_learning_s() -> None:
    """Against the definition (arXiv 1911.00068), written out: thresholds, joint, pruning."""
    e, _ = flipped(digits(), 0.08)
    p = label_errors.out_of_sample(e).astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    found = label_errors.find(e, p)
    rows = np.arange(len(e))
    np.testing.assert_allclose(found["quality"], p[rows, e.labels])
    bar = np.array([p[e.labels == j, j].mean() for j in range(10)])
    joint = np.zeros((10, 10))
    for i in rows:
        over = np.flatnonzero(p[i] >= bar - 1e-6)
        if len(over):
            joint[e.labels[i], over[p[i, over].argmax()]] += 1
    counts = np.bincount(e.labels)
    joint *= (counts / joint.sum(axis=1))[:, None]
    off = joint.sum() - np.trace(joint)
    # Those called errors are no more than the joint counts, and mostly the likeliest by margin.
    assert found["issue"].sum() <= 1.1 * off
    margin = p.max(axis=1) - p[rows, e.labels]
    issue = found["issue"].to_numpy()
    assert np.median(margin[issue]) > np.quantile(margin[~issue], 0.95)
    assert not (issue & (p.argmax(axis=1) == e.labels)).any()


def test_perfect_predictions_call_nothing_an_error() -> None:
    e = digits(200)
    found = label_errors.find(e, np.eye(10, dtype=np.float32)[e.labels] * 0.99 + 0.001)
    assert not found["issue"].any()


def test_a_class_of_one_group_is_not_judged() -> None:
    e = digits(60)
    label = e.labels.copy()
    label[label == 3] = 4
    label[:2], label[5] = 3, -1
    mask = label_errors.judged(replace(e, labels=label))
    assert not mask[:2].any()
    assert not mask[5]
    assert mask[6:].all()


# ---- missing metadata --------------------------------------------------------------------------


def cameras(noise: float, count: int = 400) -> tuple[np.ndarray, pd.Series, np.ndarray]:
    rng = RNG(0)
    camera = rng.integers(0, 3, count)
    features = rng.normal(size=(count, 6)) + 6 * np.eye(6)[camera]
    said = np.where(rng.random(count) < noise, rng.integers(0, 3, count), camera)
    return features.astype(np.float32), pd.Series([f"cam{c}" for c in said], dtype="str"), camera


def test_missing_values_are_inferred_where_that_is_proven_right() -> None:
    features, values, camera = cameras(0.0)
    gap = RNG(1).random(400) < 0.3
    found, bar = missing.infer(features, np.arange(400).astype(str), values.mask(gap), 0.9)
    assert found["row"].tolist() == np.flatnonzero(gap).tolist()  # only what is missing
    sure = found["value"] != missing.UNKNOWN
    assert sure.mean() > 0.95
    truth = np.array([f"cam{c}" for c in camera[gap]])
    assert (found["value"] == truth)[sure].mean() > 0.95
    assert (found["confidence"][sure] == bar.precision).all()
    assert bar.precision >= 0.9


@pytest.mark.parametrize("case", ["noise", "few", "one value", "nothing missing"])
def test_otherwise_they_stay_unknown(case: str) -> None:
    features, values, _ = cameras(1.0 if case == "noise" else 0.0)
    gap = np.arange(400) < (0 if case == "nothing missing" else 380 if case == "few" else 50)
    values = pd.Series(["a"] * 400, dtype="str") if case == "one value" else values
    found, bar = missing.infer(features, np.arange(400).astype(str), values.mask(gap), 0.9)
    assert bar.vote is None
    assert len(found) == gap.sum()
    assert (found["value"] == missing.UNKNOWN).all()
    assert (found["confidence"] == 0).all()


def test_neighbours_of_the_own_group_prove_nothing() -> None:
    """Within a group all is equal, between groups nothing: a guess for another group is a toss."""
    rng = RNG(0)
    group = np.repeat(np.arange(100), 8)
    features = rng.normal(size=(100, 8))[group] + 0.01 * rng.normal(size=(800, 8))
    values = pd.Series(rng.choice(["a", "b"], 100)[group], dtype="str")
    values[::9] = None
    _, bar = missing.infer(features.astype(np.float32), group.astype(str), values, 0.9)
    assert bar.vote is None


def test_the_bound_is_clopper_and_pearson_s() -> None:
    low = missing.lower(45, 50, 0.95)
    assert binom.sf(44, 50, low) == pytest.approx(0.05)  # so few errors, were it worse
    assert missing.lower(0, 5, 0.95) == 0


# ---- the stage ---------------------------------------------------------------------------------


@pytest.fixture
def suspicious(project: Path) -> Paths:
    """Two photographs' tiles, four under the wrong name; features are their mean colours."""
    for name, other in (("temple", "flower"), ("flower", "temple")):
        for file in sorted((project / f"images/{name}").glob("*.png"))[:20:10]:
            file.rename(project / f"images/{other}/wrong-{file.name}")
    cfg, paths = load(project / "params.yaml"), Paths(project)
    ingest.run(cfg, paths)
    validate.run(cfg, paths)
    frame = pd.read_parquet(paths.manifest / "manifest.parquet")
    look = audit.pictures(frame, cfg, paths, audit.Reporter("test"))
    numbers = look.select_dtypes("number")
    paths.seed_embeddings.mkdir(parents=True)
    rows = (numbers - numbers.mean()) / numbers.std()
    np.save(paths.seed_embeddings / "embeddings.npy", rows.to_numpy(np.float32))
    write_lineage(paths.seed_embeddings, "seed_embed", {}, {"manifest": paths.manifest}, {})
    return paths


def settings(**changes: object) -> Config:
    few = {"permutations": 19, "min_class": 5}
    return load(Path("params.yaml"), {f"audit.{k}": v for k, v in {**few, **changes}.items()})


def test_from_the_audit_to_corrected_labels(suspicious: Paths, tmp_path: Path) -> None:
    paths, cfg = suspicious, settings()
    said = audit.run(cfg, paths)
    assert said["encoder"] == "seed"
    assert said["judged"] == said["images"]
    table = pd.read_parquet(paths.audit / "label_errors.parquet")
    assert table["quality"].is_monotonic_increasing
    wrong = table["path"].str.contains("wrong-")
    assert wrong.sum() == 4
    assert average_precision_score(wrong, -table["quality"]) > 0.5
    doubtful = table[table["issue"] & wrong].reset_index(drop=True)
    assert len(doubtful) >= 2
    page = (paths.audit / "audit.html").read_text()
    shown = re.findall(r'data-sha256="(\w+)" data-given="(\w+)"', page)
    cards = table[table["issue"]]
    assert shown == list(zip(cards["sha256"], cards["label"], strict=True))
    assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)  # nothing is fetched
    assert read_json(paths.audit / "lineage.json")["counts"]["label_errors"] == len(cards)
    first = (paths.audit / "label_errors.parquet").read_bytes()
    audit.run(cfg, paths)
    assert (paths.audit / "label_errors.parquet").read_bytes() == first

    # What the sheet gives back: two corrected, one confirmed.
    sheet = doubtful.head(2).rename(columns={"label": "given", "suggested": "label"})
    kept = table[table["issue"] & ~wrong].head(1).assign(given=lambda t: t["label"])
    rows = pd.concat([sheet, kept])[["sha256", "path", "given", "label"]]
    rows.to_csv(tmp_path / "back.csv", index=False)
    done = correct.run(paths, tmp_path / "back.csv")
    assert (done["added"], done["rejected"]) == (len(rows), 0)
    assert done["confirmed"] == len(kept)
    again = correct.run(paths, tmp_path / "back.csv")
    assert (again["added"], again["unchanged"]) == (0, len(rows))

    before = pd.read_parquet(paths.manifest / "manifest.parquet").set_index("path")["label"]
    counts = ingest.run(cfg, paths)
    after = pd.read_parquet(paths.manifest / "manifest.parquet").set_index("path")["label"]
    assert (counts["corrected"], counts["corrections_unused"]) == (2, 0)
    assert set(after.index[before != after]) == set(sheet["path"])
    assert after[sheet["path"]].tolist() == sheet["label"].tolist()
    assert read_json(paths.manifest / "lineage.json")["counts"]["corrected"] == 2
    assert "corrections" in read_json(paths.manifest / "lineage.json")["inputs"]

    write_lineage(paths.seed_embeddings, "seed_embed", {}, {"manifest": paths.manifest}, {})
    audit.run(cfg, paths)  # what people decided is asked no more
    table = pd.read_parquet(paths.audit / "label_errors.parquet").set_index("sha256")
    assert not table.loc[rows["sha256"], "issue"].any()


def test_without_labels_there_is_still_the_rest(suspicious: Paths) -> None:
    frame = pd.read_parquet(suspicious.manifest / "manifest.parquet")
    frame.assign(label=pd.Series([None] * len(frame), dtype="str")).to_parquet(
        suspicious.manifest / "manifest.parquet", index=False
    )
    said = audit.run(settings(), suspicious)
    assert (said["judged"], said["label_errors"]) == (0, 0)
    found = pd.read_parquet(suspicious.audit / "confounders.parquet")
    assert set(found["target"]) == {"cluster"}
    assert len(pd.read_parquet(suspicious.audit / "label_errors.parquet")) == 0


def test_inferred_values_are_used_only_where_asked(suspicious: Paths) -> None:
    file = suspicious.manifest / "manifest.parquet"
    frame = pd.read_parquet(file)
    frame["source"] = np.where(frame["label"] == "temple", "left", "right")
    frame.loc[::3, "source"] = "unknown"
    frame.astype({"source": "str"}).to_parquet(file, index=False)
    cfg = settings(precision=0.5)
    said = audit.run(cfg, suspicious)["inferred"]["source"]
    assert said["missing"] == len(frame[::3])
    assert 0 < said["inferred"] <= said["missing"]
    guesses = pd.read_parquet(suspicious.audit / "inferred.parquet")
    assert set(guesses["column"]) == {"source", "captured_month"}
    own = guesses[guesses["column"] == "source"]
    assert set(own["path"]) == set(frame["path"][::3])
    assert set(own["value"]) <= {"left", "right", "unknown"}
    assert (guesses.loc[guesses["column"] != "source", "value"] == "unknown").all()

    m = audit.material(cfg, suspicious)
    table = audit.properties.metadata_table(m.manifest)
    assert audit.filled(table, guesses, m, cfg).equals(table)
    full = audit.filled(table, guesses, m, settings(fill=["source"]))
    given = audit.known(table["source"])
    assert full["source"][given.notna()].equals(given[given.notna()])  # never written over
    assert full["source"].isna().sum() == said["missing"] - said["inferred"]


def test_it_says_what_is_missing(project: Path) -> None:
    paths = Paths(project)
    with pytest.raises(HeadwaterError, match="run stages ingest to seed_embed first"):
        audit.run(load(project / "params.yaml"), paths)
    assert not paths.audit.exists()
    with pytest.raises(HeadwaterError, match="run stage ingest first"):
        correct.run(paths, project / "x.csv")


@needs_browser
def test_the_page_works_in_a_browser(suspicious: Paths, tmp_path: Path) -> None:
    audit.run(settings(), suspicious)
    done = browse((suspicious.audit / "audit.html").absolute(), tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr  # no script error, no refused resource
    assert '<b id="done">0</b>' in done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_sheet_s_csv_is_one_that_correct_reads(tmp_path: Path) -> None:
    """The page's own function, on cards with awkward names."""
    script = (Path(audit.page.__file__).parent / "audit.js").read_text()
    start, end = script.index("const field"), script.index("function count")
    cards = [
        {"sha256": "a" * 64, "path": 'x,"y".png', "given": "cat", "value": "dog, small"},
        {"sha256": "b" * 64, "path": "z.png", "given": "cat", "value": ""},
    ]
    code = (
        f"const cards = {json.dumps(cards)}.map((c) => "
        "({dataset: c, querySelector: () => ({value: c.value})}));\n"
        f"{script[start:end]}\nprocess.stdout.write(table());"
    )
    made = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "c.csv"
    file.write_text(made)
    row = {k: v for k, v in cards[0].items() if k != "value"} | {"label": "dog, small"}
    assert list(_corrections.parse(file)) == [(2, row)]


# ---- corrections -------------------------------------------------------------------------------


@pytest.fixture
def paths(project: Path) -> Paths:
    ingest.run(load(project / "params.yaml"), Paths(project))
    return Paths(project)


def contents(paths: Paths) -> pd.DataFrame:
    return pd.read_parquet(paths.manifest / "manifest.parquet")[["sha256", "path", "label"]]


def test_bad_rows_are_listed_and_change_nothing(paths: Paths, tmp_path: Path) -> None:
    known = contents(paths)
    sha, place, label = (known[c].tolist() for c in ("sha256", "path", "label"))
    other = {"temple": "flower", "flower": "temple"}
    lines = [
        "sha256,path,given,label",
        f"{sha[0]},{place[0]},{label[0]},{other[label[0]]}",  # taken
        f",{place[1]},,{other[label[1]]}",  # by path alone: taken
        f"{'0' * 64},gone.png,cat,temple",
        f"{sha[2]},{place[2]},{label[2]},",
        f"{sha[2]},{place[2]},{label[2]},tempel",
        f"{sha[3]},{place[3]},bird,{other[label[3]]}",
        f"{sha[4]},{place[4]},{label[4]},temple",
        f"{sha[4]},{place[4]},{label[4]},flower",
        "too,few",
    ]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    done = correct.run(paths, tmp_path / "c.csv")
    assert (done["added"], done["rejected"], done["corrections"]) == (2, 7, 2)
    listed = pd.read_csv(done["rejects"])
    assert listed[["line", "reason"]].to_numpy().tolist() == [
        [4, "unknown-image"],
        [5, "bad-label"],
        [6, "unknown-class"],
        [7, "label-changed"],
        [8, "contradiction"],
        [9, "contradiction"],
        [10, "bad-row"],
    ]
    assert sum(done["by_reason"].values()) == 7
    stored = _corrections.read(paths.corrections)
    assert set(stored) == {sha[0], sha[1]}
    assert stored[sha[1]]["given"] == label[1]


def test_a_new_class_needs_a_word_and_a_later_decision_replaces(
    paths: Paths, tmp_path: Path
) -> None:
    row = contents(paths).iloc[0]
    file = tmp_path / "c.csv"
    file.write_text(f"sha256,label\n{row['sha256']},palace\n")
    assert correct.run(paths, file)["rejected"] == 1
    done = correct.run(paths, file, new_classes=True)
    assert (done["added"], done["rejected"]) == (1, 0)
    counts = ingest.run(load(Path("params.yaml")), paths)
    assert (counts["corrected"], counts["classes"]) == (1, 3)
    file.write_text(f"sha256,given,label\n{row['sha256']},palace,temple\n")
    done = correct.run(paths, file)
    assert (done["added"], done["replaced"], done["corrections"]) == (0, 1, 1)
    stored = _corrections.read(paths.corrections)[row["sha256"]]
    assert (stored["given"], stored["label"]) == (row["label"], "temple")  # the source's own


def test_trace_tells_of_a_correction(paths: Paths) -> None:
    row = {**contents(paths).iloc[0].to_dict(), "given": "barn"}
    _corrections.write(paths.corrections, {row["sha256"]: row})
    found = trace.trace(paths, row["path"])
    assert found["correction"] == row
    assert "given barn, label" in trace.text(found)


def test_corrections_without_an_image_are_counted(paths: Paths) -> None:
    key = "f" * 64
    row = {"sha256": key, "path": "gone.png", "given": "a", "label": "b"}
    _corrections.write(paths.corrections, {key: row})
    counts = ingest.run(load(Path("params.yaml")), paths)
    assert (counts["corrected"], counts["corrections_unused"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sha256,path,given,label\nabc,x,y,z\n", "line 2: is not sha256,path,given,label"),
        (f"sha256,path,given,label\n{'a' * 64},x\n", "line 2"),
        ("sha256,path,given,label\n" + 2 * f"{'a' * 64},x,y,z\n", "an earlier line corrects"),
        ("path,sha256\n", "has columns path, sha256"),
        ("", "has columns none"),
        ('label,path\n"a', "is not UTF-8 CSV"),
    ],
)
def test_a_damaged_file_of_corrections_stops_ingest(paths: Paths, text: str, said: str) -> None:
    paths.corrections.write_text(text)
    with pytest.raises(HeadwaterError, match=re.escape(said)):
        ingest.run(load(Path("params.yaml")), paths)


def test_the_commands_are_there(suspicious: Paths, tmp_path: Path) -> None:
    root = suspicious.root
    said = json.loads(headwater("audit", "--json", "-s", "audit.permutations=19", cwd=root).stdout)
    assert said["page"] == "reports/audit/audit.html"
    (tmp_path / "c.csv").write_text("sha256,label\n")
    assert json.loads(headwater("correct", str(tmp_path / "c.csv"), "--json", cwd=root).stdout)
    bad = headwater("correct", "absent.csv", cwd=root, check=False)
    assert bad.returncode == 1
    assert "absent.csv: cannot be read" in bad.stderr
