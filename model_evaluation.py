"""Evaluates a trained model on its test rows: metrics with intervals, and what the model looks at.

Reads   {dataset}_{model}_model.pth        from model_training.py
        {dataset}_*.npy                    all that the dataset's preprocess script writes
Writes  {dataset}_{model}_metrics.json     all tables, with the protocol
        {dataset}_{model}_predictions.csv  one row per test row: truth, called, scores
        {dataset}_{model}_annotations/     MIT-BIH: the called beats of each test record, for
                                           bxb, LightWAVE and wfdb.rdann: {record}.{model}
        {dataset}_{model}_explanation.png  a test ECG per class, with its attribution
Takes   20 s on two cores, PTB-XL half a minute.
"""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import wfdb
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy.ndimage import uniform_filter1d

from model_training import (
    Inputs,
    call_classes,
    class_logits,
    crop_logits,
    load_checkpoint,
    make_inputs,
    offset_of,
    predict_rows,
    probabilities,
    split_rows,
    task_members,
    warning_of,
)
from preprocess_mitbih import (
    around,
    check_choice,
    in_flutter,
    is_beat,
    lead_note,
    load_dataset,
    new_files,
    pair_beats,
    record_voltage,
)

# data and model: the checkpoint decides everything else
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
TASK = "superdiagnostic"  # PTB-XL, task of the reference benchmark: "all", "diagnostic",
                          # "subdiagnostic", "superdiagnostic", "form" or "rhythm"


# ---- Score rows ----

class Predictions(NamedTuple):
    """Logits of a model for some rows of a dataset."""
    checkpoint: SimpleNamespace   # from load_checkpoint
    data: SimpleNamespace         # from load_dataset
    logits: torch.Tensor          # (n, outputs)
    rows: np.ndarray              # (n,) rows of the dataset


class Scored(NamedTuple):
    """Rows of a dataset with a label, and what a model says of them."""
    title: str                # dataset, model, split and warnings, for tables and pictures
    data: SimpleNamespace     # from load_dataset
    net: torch.nn.Module
    recipe: SimpleNamespace   # settings of the training
    names: list               # class names
    members: np.ndarray       # of records: task_members
    rows: np.ndarray          # (n,) rows of the dataset
    truth: np.ndarray         # (n, classes) bool
    called: np.ndarray        # (n, classes) bool
    probability: np.ndarray   # (n, classes) float64
    beats: pd.DataFrame       # of beats: called_beats, also of rows without a label


def predict_test_rows(dataset, model):
    """Names of dataset and model -> Predictions for the test rows by the checkpoint's split."""
    data = load_dataset(dataset)
    checkpoint = load_checkpoint(data, model)
    recipe = checkpoint.recipe
    rows = split_rows(data, recipe)["test"]
    if not len(rows):
        raise SystemExit(f"{dataset}_signals.npy has no test rows with a label: preprocess the "
                         "complete dataset, or train with another SPLIT")
    if data.kind == "beats":
        rows = np.flatnonzero(np.isin(data.record, recipe.sides["test"]))   # all their beats
    logits, rows = predict_rows(checkpoint, data, rows)
    return Predictions(checkpoint, data, logits.mean(dim=0), rows)


def score_rows(predictions, task=None):
    """Predictions, task (of records) -> Scored: the rows with a label."""
    checkpoint, data, logits, rows = predictions
    recipe = checkpoint.recipe
    members = beats = None
    if data.kind == "records":
        check_choice("TASK", task, data.header.tasks)
        names = list(data.header.tasks[task])
        members = task_members(data.header, task)
        truth = (data.metadata["statements"][rows] >= 0) @ members
        known = truth.any(axis=1)
        probability = probabilities(logits, recipe, members)
        called = probability >= np.array(checkpoint.thresholds[task])
        title = f"{data.name}, {task} statements"
    else:
        names = recipe.classes
        truth = data.labels[rows, None] == np.arange(len(names))
        known = data.labels[rows] >= 0
        probability = probabilities(logits, recipe)
        of_class = call_classes(data, rows, probability, recipe)
        called = np.arange(len(names)) == of_class[:, None]
        title = f"{data.name}, {data.header.r_peaks} beats"
        beats = called_beats(data, rows, of_class)
    if not known.any():
        raise SystemExit(f"no test row has a label of {title}: preprocess the complete dataset")
    title += f", {checkpoint.model}, {recipe.split} split, {known.sum():,} rows"
    title += lead_note(data, recipe.leads, {*data.record[rows]})
    title += warning_of(data.header.simulated)
    return Scored(
        title, data, checkpoint.net, recipe, names, members,
        rows=rows[known],
        truth=truth[known],
        called=called[known],
        probability=probability[known],
        beats=beats)


# ---- Metrics: one weighted table ----

def class_metrics(truth, called, scores, weights):
    """Three (n, classes) tables, (b, n) weights -> dict of (class, metric) -> (b,) values.

    Weights: ones for the metrics themselves, how often each patient was drawn for those of a
    resample. NaN if a metric is undefined, such as F1 without a row of the class. A row whose
    truth is NaN is left out.
    """
    table = {}
    for name in truth:
        known = weights * truth[name].notna().to_numpy()
        positive = (truth[name] == 1).to_numpy()
        call = called[name].to_numpy()
        support = known @ positive
        hits = known @ (positive & call)
        calls = known @ call
        missing = np.where(support > 0, 0, np.nan)
        table |= {
            (name, "n"): support,
            (name, "sensitivity"): ratio(hits, support),
            (name, "specificity"): ratio(known @ ~(positive | call), known @ ~positive),
            (name, "positive predictivity"): ratio(hits, calls) + missing,
            (name, "f1"): ratio(2 * hits, support + calls) + missing,
            (name, "auc"): area_under_curve(positive, scores[name].to_numpy(), known),
        }
    return table


def metrics(scored, weights):
    """Scored, (b, n) weights -> class_metrics, and ("all", metric) -> (b,) values."""
    tables = [pd.DataFrame(values, columns=scored.names)
              for values in (scored.truth, scored.called, scored.probability)]
    of_classes = class_metrics(*tables, weights)
    mean = pd.DataFrame(of_classes).T.groupby(level=1).mean()   # of the classes that have one
    correct = weights @ (scored.truth == scored.called).all(axis=1)
    table = {
        ("all", "n"): weights.sum(axis=1),
        ("all", "accuracy"): ratio(correct, weights.sum(axis=1)),
        ("all", "macro f1"): mean.loc["f1"],
        ("all", "macro auc"): mean.loc["auc"],
    }
    if scored.names[:3] == ["N", "S", "V"]:
        f1 = pd.DataFrame([of_classes[name, "f1"] for name in "NSV"])
        table["all", "mean f1 of N, S, V"] = f1.mean()
    return table | of_classes


def area_under_curve(truth, scores, weights):
    """(n,) truth and scores, (b, n) weights -> (b,) areas under the ROC curve, or NaN.

    Pairs of equal scores count half.
    """
    order = np.argsort(scores, kind="stable")
    groups = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))   # starts of equal scores
    weights = weights[:, order]
    positives = np.add.reduceat(weights * truth[order], groups, axis=1)
    negatives = np.add.reduceat(weights * ~truth[order], groups, axis=1)
    below = negatives.cumsum(axis=1) - negatives / 2
    pairs = (positives * below).sum(axis=1)
    return ratio(pairs, positives.sum(axis=1) * negatives.sum(axis=1))


def ratio(part, whole):
    """Two (b,) arrays -> part / whole, NaN if both are 0."""
    return pd.Series(part).div(whole).to_numpy()


def resample_patients(patients, metrics_of, resamples=1000):
    """(n,) patient of each row, function of (b, n) weights -> (1 + resamples, metrics) table.

    Row 0 has the metrics, the others those of resampled patients. A patient is drawn with all
    rows, because these are not independent.
    """
    _, number = np.unique(patients, return_inverse=True)
    count = number.max() + 1
    drawn = np.random.default_rng(0).multinomial(
        count, np.full(count, 1 / count), size=resamples)
    drawn = np.concatenate([np.ones((1, count)), drawn])
    groups = np.array_split(drawn, len(drawn) * len(number) // 4_000_000 + 1)
    tables = [pd.DataFrame(metrics_of(group[:, number])) for group in groups]
    return pd.concat(tables, ignore_index=True)


def summarise(resampled):
    """Table of resample_patients -> value, low, high of each metric: the middle 95%.

    No interval if fewer than half of the resamples have the metric.
    """
    drawn = resampled.iloc[1:]
    limits = drawn.quantile([0.025, 0.975]).T.where(drawn.notna().mean() >= 0.5, axis=0)
    return pd.DataFrame({
        "value": resampled.iloc[0],
        "low": limits[0.025],
        "high": limits[0.975],
    })


def summary_tables(heading, summary):
    """Heading, summary of several classes -> dict of heading -> table, one row per class."""
    parts = {"": "value", ", 95% interval from": "low", ", 95% interval to": "high"}
    return {heading + part: summary[column].unstack(sort=False) for part, column in parts.items()}


def summarise_metrics(scored):
    """Scored -> table of summarise, by class and over all."""
    return summarise(
        resample_patients(scored.data.patient[scored.rows], partial(metrics, scored)))


# ---- Beat by beat, as in ANSI/AAMI EC57 ----

def called_beats(data, rows, called):
    """Dataset, (n,) rows of beats, (n,) classes -> table of record, sample, symbol of each call.

    The samples are the record's own, as in its annotation file.
    """
    header = data.header
    rates = pd.DataFrame(header.records)["rate"].to_numpy()[data.metadata["record"][rows]]
    symbols = np.array([*header.symbols, "not a beat"])
    beats = pd.DataFrame({
        "record": data.record[rows],
        "sample": np.round(data.metadata["sample"][rows] * (rates / header.sampling_rate)),
        "symbol": symbols[called],
    }, rows)
    return beats[beats["symbol"] != "not a beat"].astype({"sample": int})


def write_annotations(marks, folder, extension, records):
    """Table of record, sample, symbol, maybe subtype, aux_note -> annotation file of each record.

    Those of other records, which an earlier run wrote, are removed. records: of the header.
    """
    rate_of = {record["name"]: record["rate"] for record in records}
    columns = ["record", "sample", "symbol", "subtype", "aux_note"]
    marks = marks.reindex(columns=columns).astype(object)
    marks = marks.fillna({"subtype": 0, "aux_note": ""})
    earlier = {*Path(folder).rglob(f"*.{extension}")}
    for record, table in marks.groupby("record"):
        path = Path(folder, f"{record}.{extension}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_files(path) as (temporary,), TemporaryDirectory() as scratch:
            wfdb.wrann("record", "beats", table["sample"].to_numpy(int),
                       table["symbol"].to_numpy(str), table["subtype"].to_numpy(int),
                       aux_note=[*table["aux_note"]], fs=rate_of[record], write_dir=scratch)
            temporary.write_bytes(Path(scratch, "record.beats").read_bytes())
        earlier.discard(path)
    for path in earlier:
        path.unlink()


def beat_counts(data, beats, records, start):
    """Dataset, table of called_beats, record names, start in s -> table of counts by record.

    Columns: class of the reference and of the call: "Vn"; "On": no beat there; "Vo": missed. The
    counts of `bxb` of the WFDB software, for files in these classes: e j n are N, not S.
    """
    letters = np.array(data.header.symbols)
    counts = {}
    for number, record in enumerate(data.header.records):
        if record["name"] not in records:
            continue
        called = beats[beats["record"] == record["name"]]
        marks = data.annotations[data.annotations["record"] == number]
        reference = marks[is_beat(marks) & ~in_flutter(marks, marks["sample"])]
        pairs = pair_beats(reference["sample"], called["sample"], record["rate"], start)
        true = np.append(letters[reference["label"]], "O")[pairs[:, 0]]   # -1 takes the last one
        call = np.append(called["symbol"], "O")[pairs[:, 1]]
        sample = np.append(called["sample"], 0)[pairs[:, 1]]
        counted = (true != "O") | ~in_flutter(marks, sample)
        cells = pd.Series(true[counted]) + pd.Series(call[counted]).str.lower()
        counts[record["name"]] = cells.value_counts()
    cells = [reference + call for reference in "NSVFQO" for call in "nsvfqo"]
    return pd.DataFrame(counts).T.reindex(columns=cells).fillna(0).astype(int)


def ec57_table(counts):
    """Table of beat_counts -> percentages by record, gross, and their mean over records.

    A fusion or unclassifiable beat called V is no false VEB, nor is an unclassifiable one called S
    a false SVEB. A fusion beat called S is one by record, as in `bxb`, but neither gross nor on
    average, as in `sumstats`. F1 counts every beat.
    """
    by_record = ec57_rows(counts, false_sveb="NVFO")
    gross = ec57_rows(counts.sum().to_frame("gross").T, false_sveb="NVO")
    average = ec57_rows(counts, false_sveb="NVO").mean().to_frame("average").T
    return pd.concat([by_record, gross, average])


def ec57_rows(counts, false_sveb):
    """Table of beat_counts, references of false SVEB calls -> its rows of ec57_table."""
    beats, calls = "NSVFQ", "nsvfq"   # O, o: none

    def total(references, of_calls):
        cells = [reference + call for reference in references for call in of_calls]
        return counts[cells].sum(axis=1)
    table = {"beats": total(beats, calls + "o")}
    for kind, true, false in [
        ("QRS", beats, "O"),
        ("VEB", "V", "NSO"),
        ("SVEB", "S", false_sveb),
    ]:
        call = true.lower()
        hits = total(true, call)
        table[f"{kind} sensitivity"] = 100 * hits / total(true, calls + "o")
        table[f"{kind} positive predictivity"] = 100 * hits / (hits + total(false, call))
    for name in "NSV":
        support = total(name, calls + "o")
        called = total(beats + "O", name.lower())
        table[f"{name} f1"] = 2 * total(name, name.lower()) / (support + called)
    table = pd.DataFrame(table)
    return table.assign(**{"mean f1 of N, S, V": table[["N f1", "S f1", "V f1"]].mean(axis=1)})


# ---- What the model looks at ----

def choose_examples(scored):
    """Scored -> (m,) rows among the scored ones and the class to explain for each.

    Of the eight largest classes, the row of median score among the correct ones, or among all if
    none is correct.
    """
    count = scored.truth.sum(axis=0)
    classes = np.argsort(-count, kind="stable")[:8]
    classes = np.sort(classes[count[classes] > 0])
    rows = []
    for k in classes:
        of_class = scored.truth[:, k]
        correct = of_class & scored.called[:, k]
        some = np.flatnonzero(correct if correct.any() else of_class)
        ranked = some[np.argsort(scored.probability[some, k])]
        rows.append(ranked[len(ranked) // 2])
    return np.array(rows), classes


def integrated_gradients(scored, inputs, classes):
    """Inputs of m rows, class of each -> (m, channels, samples).

    Gradients are averaged from a flat line, the median, to the signal. They add up to the
    difference of the logits (Sundararajan et al. 2017).
    """
    signals, features = inputs
    classes = torch.from_numpy(classes)[:, None]
    base = offset_of(signals)
    total = torch.zeros_like(signals)
    for step in range(32):
        x = (base + (step + 0.5) / 32 * (signals - base)).requires_grad_()
        logits = crop_logits(scored.net, Inputs(x, features), scored.recipe.crop).mean(dim=0)
        logits = class_logits(logits, scored.recipe, scored.members)
        logits.gather(1, classes).sum().backward()
        total += x.grad
    return total / 32 * (signals - base)


def inputs_of(scored, rows):
    """(m,) rows among the scored ones, in any order -> their Inputs."""
    wanted = scored.rows[rows]
    inputs, number = make_inputs(scored.data, np.unique(wanted), scored.recipe)
    return Inputs(*(values[np.searchsorted(number, wanted)] for values in inputs))


def explain(scored, rows, classes):
    """(m,) rows among the scored ones, class of each -> (m, leads, samples) attribution.

    The size of the integrated gradients, smoothed over 0.02 s.
    """
    gradients = integrated_gradients(scored, inputs_of(scored, rows), classes)
    # the channels of a lead (the relative beat, its difference) add up: its voltage moves both
    size = gradients.unflatten(1, (-1, len(scored.recipe.leads))).sum(dim=1).abs().numpy()
    return uniform_filter1d(size, round(0.02 * scored.data.rate), axis=2)


# ---- Pictures ----

def save_figure(figure, title, path):
    """Figure -> PNG."""
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def draw_ecg(axis, rate, voltage, attribution, names, title):
    """(leads, t) mV, attribution from 0 to 1 shaded behind it, names of the leads -> ECG paper.

    The small squares are 0.04 s and 0.1 mV, as at 25 mm/s and 10 mm/mV. Leads are 2 mV apart.
    """
    time = np.arange(voltage.shape[1]) / rate
    for number, name in enumerate(names):
        level = voltage[number] - np.median(voltage[number])
        level = level.clip(-6, 6) - 2 * number   # mV; more would take hours to draw
        weight = attribution[number][None, 1:]
        band = axis.pcolormesh(
            time, [level.min(), level.max()], weight,
            cmap="Blues", vmin=0, vmax=1, alpha=weight)
        axis.plot(time, level, color="black", linewidth=0.8)
        axis.text(0.05, 0.4 - 2 * number, name, fontsize=7)
    for ticks, small, large in ((axis.xaxis, 0.04, 0.2), (axis.yaxis, 0.1, 0.5)):
        ticks.set_major_locator(MultipleLocator(large))
        ticks.set_minor_locator(MultipleLocator(small))
        ticks.grid(which="both", color="#e8b5b5", linewidth=0.4)
    axis.update_datalim([(0, -2 * len(names)), (0, 2)])
    axis.use_sticky_edges = False
    axis.margins(x=0)
    axis.set(aspect=0.4, axisbelow=True, xlabel="25 mm/s, 10 mm/mV")
    axis.set_title(title, fontsize=8)
    axis.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    return band


def caption_of(scored, row):
    """Row among the scored ones -> caption: record, time, true class and the highest score."""
    names = np.array(scored.names)
    data = scored.data
    caption = f"record {data.record[scored.rows[row]]}"
    if data.kind == "beats":
        caption += f", {data.metadata['sample'][scored.rows[row]] / data.rate:.1f} s"
    truth = "+".join(names[scored.truth[row]])
    p = scored.probability[row]
    return f"{caption}: true {truth}, highest score {names[p.argmax()]} ({p.max():.2f})"


def draw_beat(axis, scored, row, weight):
    """Draws 2.5 s around a beat, the model's first lead, with (leads, samples) attribution."""
    data = scored.data
    beat = data.metadata[scored.rows[row]]
    lead = record_voltage(data, beat["record"])[:, data.leads.index(scored.recipe.leads[0])]
    reach = max(round(1.25 * data.rate), weight.shape[1])
    attribution = np.zeros((1, 2 * reach + 1))
    first = reach - weight.shape[1] // 2   # the model sees the middle of the beat
    attribution[:, first:first + weight.shape[1]] = weight[:1]
    axis.axvline(reach / data.rate, color="0.5", linestyle=":")   # marks the beat
    voltage = around(lead, beat["sample"][None], reach)
    return draw_ecg(axis, data.rate, voltage, attribution, [""], caption_of(scored, row))


def draw_record(axis, scored, row, weight):
    """Draws all leads of a record, with (leads, samples) attribution of the model's leads."""
    data = scored.data
    voltage = data.signals[scored.rows[row]]
    attribution = np.zeros_like(voltage)
    attribution[[data.leads.index(lead) for lead in scored.recipe.leads]] = weight
    return draw_ecg(axis, data.rate, voltage, attribution, data.leads, caption_of(scored, row))


def plot_ecgs(scored, rows, weights, path):
    """(m,) rows among the scored ones, (m, leads, samples) attribution -> PNG, on ECG paper."""
    if scored.data.kind == "beats":
        draw, columns, height = draw_beat, 2, 4
    else:
        draw, columns, height = draw_record, 1, 0.8 * len(scored.data.leads)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(10, height * lines), layout="constrained")
    frames = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in frames[len(rows):]:
        axis.axis("off")
    for axis, row, weight in zip(frames, rows, weights):
        band = draw(axis, scored, row, weight / max(weight.max(), 1e-12))
    figure.colorbar(band, ax=figure.axes, shrink=0.3, label="attribution")
    save_figure(figure, f"{scored.title}. Integrated gradients", path)


# ---- Report ----

def predictions_table(scored):
    """Scored -> table with one row per test row: identifiers, truth, called, scores."""
    names = np.array(scored.names)
    fields = ["sample", "symbol"] if scored.data.kind == "beats" else []
    table = pd.DataFrame({
        "record": scored.data.record[scored.rows],
        "patient": scored.data.patient[scored.rows],
        **{field: scored.data.metadata[field][scored.rows] for field in fields},
        "true": ["+".join(names[row]) for row in scored.truth],
        "called": ["+".join(names[row]) for row in scored.called],
    })
    table[[f"{name} score" for name in names]] = scored.probability
    return table


def print_tables(tables):
    """Prints a dict of heading -> table."""
    for heading, table in tables.items():
        if len(table) and len(table.columns) < 20:   # wider ones are in the files
            text = table.to_string(
                float_format=lambda value: f"{value:.3f}".removesuffix(".000"), na_rep="n/a")
            print(f"\n{heading}\n{text}")


def to_json(report):
    """Dict with tables -> JSON text; NaN becomes null."""
    return json.dumps(report, indent=1, default=lambda table: json.loads(
        table.to_json(orient="index", double_precision=15)))


def make_tables(scored, summary):
    """Scored, its summarise_metrics -> dict of heading -> table."""
    names = np.array(scored.names)
    one_label = scored.truth.sum(axis=1) == 1
    tables = {
        "all classes": summary.loc["all"],
        **summary_tables("by class", summary.loc[scored.names]),
        "true class and most probable class of rows with one class": pd.crosstab(
            names[scored.truth[one_label].argmax(axis=1)],
            names[scored.probability[one_label].argmax(axis=1)],
            rownames=["true"], colnames=["most probable"]),
    }
    if scored.data.kind == "beats" and scored.data.header.symbols == [*"NSVFQ"]:
        records = np.unique(scored.data.record[scored.rows])
        for start in (0, 5):
            counts = beat_counts(scored.data, scored.beats, records, 60 * start)
            tables[f"EC57 from {start}:00"] = ec57_table(counts)
            tables[f"beats counted from {start}:00, reference and call"] = counts
    return tables


def task_tables(predictions):
    """Predictions of records -> dict of heading -> table of all six tasks."""
    tasks = predictions.data.header.tasks
    summaries = {task: summarise_metrics(score_rows(predictions, task)) for task in tasks}
    aucs = {
        task: {
            "records": summary.loc[("all", "n"), "value"],
            "classes": len(tasks[task]),
            **summary.loc[("all", "macro auc")]}
        for task, summary in summaries.items()}
    statements = summaries["all"].xs("auc", level=1).sort_values("value").dropna(subset="value")
    return {
        "macro AUC of the benchmark's tasks": pd.DataFrame(aucs).T,
        "AUC of every statement": statements,
    }


# ---- Main ----

def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    predictions = predict_test_rows(DATASET, MODEL)
    scored = score_rows(predictions, TASK)
    summary = summarise_metrics(scored)
    tables = make_tables(scored, summary)
    if scored.data.kind == "records":
        tables |= task_tables(predictions)
    parts = ["metrics.json", "predictions.csv", "explanation.png"]
    with new_files(*(f"{DATASET}_{MODEL}_{part}" for part in parts)) as paths:
        paths[0].write_text(to_json({
            "title": scored.title,
            "recipe": vars(scored.recipe),
            "header": vars(scored.data.header),
            "tables": tables}))
        predictions_table(scored).to_csv(paths[1], index=False, float_format="%.9g")
        examples, classes = choose_examples(scored)
        attribution = explain(scored, examples, classes)
        plot_ecgs(scored, examples, attribution, paths[2])
    if scored.data.kind == "beats":
        write_annotations(scored.beats, f"{DATASET}_{MODEL}_annotations", MODEL,
                          scored.data.header.records)
    print(scored.title)
    print_tables(tables)
    print(f"Wrote {DATASET}_{MODEL}_ {', '.join(parts)}")


if __name__ == "__main__":
    main()
