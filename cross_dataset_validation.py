"""Tests a trained model on another database than its own: normal or abnormal, and which condition?

Reads   {source}_{model}_strips_model.pth between beats and 12-lead records, else
        {source}_{model}_model.pth; the .npy files of both databases
Writes  {source}_to_{target}_{model}_cross.json   every table that is printed
        {source}_to_{target}_{model}_cross.csv    truth and scores of every strip or beat
        {source}_to_{target}_{model}_cross.png    ROC curve, AUC of the questions
        of recordings without a reference: _beats.csv, _hours.csv, _annotations/ and a picture each
Takes   half a minute on two cores.

MIT-BIH and PTB-XL meet in strips of 10 s: the PTB-XL records, and pieces of the MIT-BIH records.
A beat model scores a strip by its beats, a PTB-XL model by its crops, each by its outputs for the
SCP statements. Between two databases of annotated beats, each beat is scored in its whole record.
Nothing of the target chooses anything.
"""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.special import expit
from sklearn.metrics import RocCurveDisplay, roc_curve

from model_evaluation import (
    area_under_curve,
    called_beats,
    draw_ecg,
    make_tables,
    print_tables,
    ratio,
    resample_patients,
    score_rows,
    summarise,
    to_json,
    write_annotations,
)
from model_training import (
    beat_inputs,
    beats_of,
    choose_sides,
    crop_starts,
    load_checkpoint,
    log_odds,
    make_inputs,
    predict,
    probabilities,
    record_inputs,
    rows_by_context,
    save_figure,
    split_rows,
    warnings_of,
)
from preprocess_mitbih import (
    check_choice,
    cut_beats,
    lead_columns,
    load_dataset,
    new_files,
    qrs_energy,
    recentre,
    resample,
)

# data and model
PRETRAINED_DATASET = "mitbih"   # source: "mitbih" or "ptbxl"
TEST_DATASET = "ptbxl"          # target: "ptbxl", "mitbih", or NAME of another database
MODEL = "cnn"                   # "cnn", "lstm" or "mlp"

SAME = {"AFIB": "AFLT", "SVTAC": "PSVT"}   # MIT-BIH's first statement is either one in PTB-XL
SINGLE = ["PVC", "PAC"]   # a single beat shows them: the largest score counts, not the mean
BOTH = "abnormal, as both name it"   # as PTB-XL calls what MIT-BIH annotates:
NAMED = "PVC PAC CLBBB CRBBB PACE AFIB SVTAC SBRAD BIGU TRIGU 2AVB WPW".split()
FEW = 5                   # fewer patients have no interval


# ---- Strips of both databases ----

def mitbih_strips(data, records):
    """Dataset of beats, record names -> strips of 10 s with their beats, labelled by these.

    signals (n, leads, samples) float32 mV; beats: list of n arrays of positions; truth: table of
    questions, NaN where a strip has no answer; place: table of record, sample, patient.
    """
    header = data.header
    length = 10 * header.sampling_rate
    voltage = data.records.reshape(len(data.records), -1)
    ends = np.cumsum([record["samples"] for record in header.records])
    every = pd.DataFrame(data.metadata[["record", "sample"]])
    found = data.metadata["statements"] >= 0
    is_normal = (np.isin(data.metadata["symbol"], ["N", ""])
                 & np.isin(data.metadata["rhythm"], ["(N", ""]))
    count = sum(record["samples"] // length for record in header.records
                if record["name"] in records)
    signals, beats, shares, normal, place = [], [], [], [], []
    for (number, strip), inside in every.groupby(["record", every["sample"] // length]):
        record = header.records[number]
        start = strip * length
        if record["name"] not in records or start + length > record["samples"]:
            continue
        first = ends[number] - record["samples"] + start
        signals.append(voltage[first:first + length].T)
        beats.append(inside["sample"].to_numpy() - start)
        shares.append(found[inside.index].mean(axis=0))
        normal.append(is_normal[inside.index].mean())
        place.append((record["name"], start, record["patient"]))
    shares = pd.DataFrame(shares, columns=header.statement_names)
    truth = (shares > 0).astype(float)
    truth["PAC"] = truth["PAC"].where(shares["PAC"] <= 0.5)   # else nothing is early against them
    return SimpleNamespace(
        signals=np.array(signals), rate=header.sampling_rate, leads=header.leads, beats=beats,
        truth=with_abnormal(truth, pd.Series(normal) < 1),
        left_out=Counter({"strips without a beat": count - len(place)}),
        notes=[f"beats: {header.r_peaks}"],
        place=pd.DataFrame(place, columns=["record", "sample", "patient"]))


def ptbxl_strips(data, folds):
    """12-lead database, folds -> its pieces of 10 s, labelled by superclasses and statements."""
    header = data.header
    rows = np.flatnonzero(np.isin(data.metadata["fold"], folds))
    metadata = data.metadata[rows]
    superclasses = pd.DataFrame(metadata["superclasses"] == 1, columns=header.class_names)
    truth = pd.DataFrame(metadata["statements"] >= 0, columns=header.statement_names, dtype=float)
    unite(truth)
    only_normal = superclasses["NORM"] & (superclasses.sum(axis=1) == 1)
    known = superclasses.any(axis=1) | (data.name != "ptbxl") & truth.any(axis=1)
    return SimpleNamespace(
        signals=data.signals[rows], rate=header.sampling_rate, leads=header.leads,
        beats=beats_of(metadata),
        truth=with_abnormal(truth, (~only_normal).astype(float).where(known)),
        place=pd.DataFrame(
            {"record": data.record[rows], "sample": 0, "patient": data.patient[rows]}),
        notes=["beats: found in all leads"],
        left_out=Counter({"pieces without a label of normal or abnormal": int(np.sum(~known))}))


def unite(table):
    """Table with a column a statement: gives the statements of SAME the larger of both values."""
    for name, other in SAME.items():
        table[name] = table.filter([name, other]).max(axis=1)


def with_abnormal(truth, abnormal):
    """Tables of statements and of abnormal (n,) -> the questions of a strip.

    "Abnormal, as both name it" leaves out what only one database names, such as infarction, and
    strips that are abnormal by their premature beats alone, if these are most of them.
    """
    truth = truth.drop(columns="NORM", errors="ignore")
    named = truth.filter(NAMED).any(axis=1)
    both = named.astype(float).where(named | (abnormal == 0))
    return pd.concat({"abnormal": abnormal.astype(float), BOTH: both}, axis=1).join(truth)


def strips_of(data, members):
    """Dataset, its records or folds -> strips."""
    return ptbxl_strips(data, members) if data.is_ptbxl else mitbih_strips(data, members)


# ---- Match the strips to the model ----

def match_leads(signals, available, wanted):
    """(n, leads, samples), its lead names, the model's -> the model's, an absent one 0; a sentence.

    A single lead of another name stands in for the first one.
    """
    columns = lead_columns(available, wanted)
    if not columns and len(available) > 1:
        raise SystemExit(f"the model needs one of the leads {', '.join(wanted)}, but the other "
                         f"database has {', '.join(available)}: choose other LEADS")
    columns = columns or {0: 0}
    matched = np.zeros((len(signals), len(wanted), signals.shape[2]), np.float32)
    matched[:, list(columns)] = signals[:, list(columns.values())]
    pairs = [f"{available[column]} as {wanted[place]}" for place, column in columns.items()]
    return matched, f"leads: {', '.join(pairs)}"


def inputs_of(recipe, strips, rows):
    """Strips, some of them -> (signals, features) of their beats or crops, strip of each, notes."""
    signals, sentence = match_leads(strips.signals[rows], strips.leads, recipe.leads)
    signals = resample(signals, strips.rate, recipe.rate)
    beats = [strips.beats[row].astype(int) * recipe.rate // strips.rate for row in rows]
    inputs = strip_inputs if recipe.task == "multiclass" else crop_inputs
    notes = [sentence, f"sampling rate: {strips.rate} to {recipe.rate} Hz"]
    return *inputs(signals, beats, recipe), notes


def strip_inputs(signals, positions, recipe):
    """(n, leads, samples), n arrays of positions -> inputs of all beats, and strip of each."""
    half = recipe.segment // 2
    padded = np.pad(signals, ((0, 0), (0, 0), (half, half)), mode="edge")   # keeps the outer beats
    leads = [signal[signal.any(axis=1)][:1] for signal in signals]   # as in preprocess_mitbih.py
    positions = [recentre(lead, qrs_energy(lead, recipe.rate), peaks, recipe.rate)
                 for lead, peaks in zip(leads, positions)]
    cut = [cut_beats(signal, peaks + half, recipe.segment)[0]
           for signal, peaks in zip(padded, positions)]
    beats = {
        "record": np.repeat(np.arange(len(signals)), list(map(len, positions))),
        "sample": np.concatenate(positions)}
    if not len(beats["sample"]):
        raise SystemExit(f"no beat was found in {len(signals)} strips")
    return make_inputs(np.concatenate(cut), beats, recipe), beats["record"]


def crop_inputs(signals, positions, recipe):
    """The same for all half-overlapping crops of a PTB-XL model."""
    signals, features = record_inputs(signals, positions, recipe.rate)
    starts = crop_starts(signals.shape[2], recipe.crop)
    crops = signals.unfold(2, recipe.crop, 1)[:, :, starts].transpose(1, 2).flatten(0, 1)
    strips = np.repeat(np.arange(len(signals)), len(starts))
    return (crops, features.repeat_interleave(len(starts), 0)), strips


# ---- Score ----

def score_strips(checkpoint, net, strips):
    """Strips -> those with a beat: truth, scores (log odds) and place; notes, left_out."""
    statements = checkpoint.header.statement_names   # the last outputs
    tables = []
    count = len(strips.truth)
    if not count:
        raise SystemExit("there is no piece of 10 s to score: preprocess the complete database")
    for rows in np.array_split(np.arange(count), count // 2000 + 1):   # memory stays flat
        inputs, number, notes = inputs_of(checkpoint.recipe, strips, rows)
        logits = predict(net, *inputs, np.arange(len(number)), checkpoint.recipe.crop)
        logits = pd.DataFrame(logits[:, -len(statements):], columns=statements)
        tables.append(answers(logits.groupby(rows[number])))
    scores = pd.concat(tables)
    scores = scores[scores.columns.intersection(strips.truth.columns, sort=False)]
    truth = strips.truth.loc[scores.index, scores.columns]
    place = strips.place.loc[scores.index]
    pieces = [place["record"], place["sample"]]   # of a 12-lead record, which has the largest score
    return SimpleNamespace(
        truth=truth.groupby(pieces, sort=False).max().reset_index(drop=True),
        scores=scores.groupby(pieces, sort=False).max().reset_index(drop=True),
        place=place.drop_duplicates(["record", "sample"], ignore_index=True),
        notes=notes + strips.notes,
        left_out=strips.left_out + Counter({"strips without a beat": count - len(scores)}))


def answers(logits):
    """Logits of the statements, grouped by strip -> table of a strip's scores (log odds)."""
    scores = logits.mean()
    scores[SINGLE] = logits[SINGLE].max()
    unite(scores)
    none = expit(-scores.filter(NAMED)).prod(axis=1)
    scores.insert(0, "abnormal", -scores.pop("NORM"))
    scores.insert(1, BOTH, -log_odds(none))
    return scores


def beat_logits(checkpoint, net, data, rows):
    """Checkpoint, net, dataset, rows of whole records -> (rows, outputs) logits, and a sentence.

    Part by part, so that memory stays flat in a record of a day.
    """
    recipe = checkpoint.recipe
    form = data.header.sampling_rate, data.signals.shape[2], data.header.symbols
    known = recipe.rate, recipe.segment, checkpoint.header.symbols
    if form != known:
        raise SystemExit(f"beats of {data.name} are {form}, the model's {known}: preprocess both "
                         "with the same SAMPLING_RATE, SEGMENT and CLASSES")
    logits = torch.zeros(len(rows), checkpoint.net_arguments["outputs"])
    for part in rows_by_context(data.metadata[rows], recipe.context_seconds * recipe.rate):
        signals, sentence = match_leads(data.signals[rows[part]], data.header.leads,
                                        recipe.leads)
        inputs = beat_inputs(signals, data.metadata["sample"][rows[part]], recipe)
        logits[part] = predict(net, *map(torch.from_numpy, inputs), np.arange(len(part)),
                               recipe.crop)
    return logits, sentence


def score_beats(checkpoint, net, data, records):
    """Dataset of beats, record names -> the same for beats, and Scored for the tables by class."""
    rows = np.flatnonzero(np.isin(data.record, records))
    logits, sentence = beat_logits(checkpoint, net, data, rows)
    scored = score_rows(checkpoint, net, data, rows, logits)
    truth = pd.DataFrame(scored.truth, columns=scored.names, dtype=float)
    scores = pd.DataFrame(log_odds(scored.probability), columns=scored.names)
    normal = scored.names[0]
    is_beat = data.labels[scored.rows] < len(data.header.symbols)
    truth.insert(0, "abnormal", (1 - truth[normal]).where(is_beat))
    scores.insert(0, "abnormal", -scores[normal])
    return SimpleNamespace(
        truth=truth, scores=scores, scored=scored, left_out=Counter(),
        notes=[sentence, f"beats: {data.header.r_peaks}"],
        place=pd.DataFrame({
            "record": data.record[scored.rows], "sample": data.metadata["sample"][scored.rows],
            "patient": data.patient[scored.rows]}))


# ---- Figures ----

def choose_threshold(validation):
    """Result of the source's validation strips -> threshold of the best balanced accuracy."""
    truth = validation.truth["abnormal"].dropna()
    if truth.nunique() < 2:
        raise SystemExit("validation strips are all normal or all abnormal: preprocess all records")
    false_positive, true_positive, cuts = roc_curve(
        truth, validation.scores["abnormal"][truth.index])
    return cuts[np.argmax(true_positive - false_positive)]


def strip_figures(result, weights):
    """Result, (b, n) weights -> dict of (b,) figures: of abnormal, then AUC of each condition."""
    known = result.truth.notna().to_numpy()
    truth = result.truth.to_numpy() == 1
    auc = {f"AUC, {name}": area_under_curve(truth[:, k], result.scores[name].to_numpy(),
                                            weights * known[:, k])
           for k, name in enumerate(result.truth)}
    abnormal = truth[:, 0]
    called = (result.scores["abnormal"] >= result.threshold).to_numpy()
    weights = weights * known[:, 0]
    sensitivity = ratio(weights @ (abnormal & called), weights @ abnormal)
    specificity = ratio(weights @ ~(abnormal | called), weights @ ~abnormal)
    return auc | {
        "balanced accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def cross_tables(results):
    """Dict of side -> result -> dict of heading -> table."""
    resampled, counts, tables = {}, {}, {}
    for side, result in results.items():
        seed = int(side == "cross-domain")   # the sides are drawn apart
        resampled[side] = resample_patients(
            result.place["patient"], partial(strip_figures, result), seed)
        positive = result.truth == 1
        patients = positive.groupby(result.place["patient"]).any().sum()
        counts[f"{side}, rows"] = result.truth.notna().sum()
        counts[f"{side}, positive"] = positive.sum()
        counts[f"{side}, patients"] = patients
        few = "AUC, " + patients.index[patients < FEW]
        resampled[side].loc[1:, few] = np.nan
        tables[side] = summarise(resampled[side])
    if len(tables) == 2:
        home, away = resampled.values()
        both = home.columns.intersection(away.columns, sort=False)
        tables["drop"] = summarise(home[both] - away[both])
    return tables | {"rows": pd.concat(counts, axis=1)}


# ---- Report ----

def plot_report(results, tables, title, path):
    """Dict of side -> result, tables -> PNG: ROC curve, AUC of the questions."""
    names = tables["cross-domain"].filter(like="AUC", axis=0).index
    figure = Figure(figsize=(11, 4 + len(names) / 10), layout="constrained")
    roc, conditions = figure.subplots(1, 2)
    for (side, result), color in zip(results.items(), ("0.6", "black")):
        known = result.truth["abnormal"].notna()
        pair = result.truth["abnormal"][known], result.scores["abnormal"][known]
        if pair[0].nunique() == 2:
            RocCurveDisplay.from_predictions(
                *pair, ax=roc, name=side, curve_kwargs={"color": color})
        auc = tables[side].filter(like="AUC", axis=0)
        height = names.get_indexer(auc.index) + (side == "cross-domain") / 5
        conditions.hlines(height, auc["low"], auc["high"], color=color)
        conditions.plot(auc["value"], height, "o", color=color, label=side)
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="normal or abnormal")
    conditions.set(xlabel="AUC against the rest, 95% interval", yticks=range(len(names)),
                   yticklabels=names)
    conditions.invert_yaxis()
    save_figure(figure, title, path)


def scores_table(results):
    """Dict of side -> result -> table of one row a strip or beat: place, truth, scores."""
    tables = []
    for side, result in results.items():
        table = result.place.assign(
            side=side, called=result.scores["abnormal"] >= result.threshold)
        tables.append(table.join([result.truth.add_suffix(" truth"),
                                  result.scores.add_suffix(" score")]))
    return pd.concat(tables)


# ---- Recordings without a reference ----

def call_beats(checkpoint, net, data):
    """Dataset of beats -> table, a row a beat: record, sample, symbol, time, RR, probabilities."""
    rows = np.arange(len(data.labels))
    logits, sentence = beat_logits(checkpoint, net, data, rows)
    print(f"{sentence}; beats: {data.header.r_peaks}")
    probability = probabilities(logits, checkpoint.recipe)
    beats = called_beats(data, rows, probability)
    beats["time"] = data.metadata["sample"][beats.index] / data.header.sampling_rate   # s
    beats["RR"] = beats.groupby("record")["time"].diff()                               # s
    beats["probability"] = probability.max(axis=1)[beats.index]
    return beats.join(pd.DataFrame(probability, columns=checkpoint.header.class_names))


def hourly_table(beats):
    """Table of call_beats -> table of beats, rate, ectopic beats, couplets and runs by hour."""
    place = beats[["record", "symbol"]]
    run = (place != place.shift()).any(axis=1).cumsum()
    length = beats.groupby(run)["symbol"].transform("size")
    hour = beats["time"].astype(int) // 3600
    table = beats[["record"]].assign(hour=hour, beats=1, rate=beats["RR"].where(beats["RR"] < 5))
    for symbol in "SV":
        called = beats["symbol"] == symbol
        begins = called & ~run.duplicated()
        table[f"{symbol} beats"] = called
        table[f"{symbol} couplets"] = begins & (length == 2)
        table[f"{symbol} runs"] = begins & (length > 2)
    by_hour = table.groupby(["record", "hour"])
    return by_hour.sum().assign(rate=60 / by_hour["rate"].mean())   # beats per minute


def plot_recording(data, beats, title, path):
    """Table of call_beats of one record -> PNG: RR intervals, five certain beats of each class."""
    symbols = beats["symbol"].unique()
    figure = Figure(figsize=(12, 12), layout="constrained")
    rhythm, *papers = figure.subplots(1 + len(symbols))
    for symbol, style in (("N", "k,"), ("S", "b^"), ("V", "rv")):
        of_class = beats[beats["symbol"] == symbol]
        rhythm.plot(of_class["time"] / 60, of_class["RR"].clip(upper=2.5), style, label=symbol)
    rhythm.set(xlabel="time (min)", ylabel="RR interval (s)", ylim=(0, 2.5))
    rhythm.legend()
    for paper, symbol in zip(papers, symbols):
        certain = beats[beats["symbol"] == symbol].nlargest(5, "probability")
        voltage = data.signals[certain.index, 0]
        captions = [f"{symbol} at {time:.1f} s" for time in certain["time"]]
        starts = np.arange(len(voltage)) * voltage.shape[1] / data.header.sampling_rate
        nothing = np.zeros_like(voltage)
        traces = zip(starts, nothing[:, 0], voltage, nothing, captions)
        draw_ecg(paper, data.header.sampling_rate, traces)
    save_figure(figure, title, path)


def annotate(checkpoint, net, data, title, name):
    """Writes what a model calls in recordings without a reference; nothing is scored."""
    beats = call_beats(checkpoint, net, data)
    hours = hourly_table(beats)
    names = beats["record"].unique()
    pictures = [f"{name}_{record.replace('/', '_')}.png" for record in names]
    with new_files(f"{name}_beats.csv", f"{name}_hours.csv", *pictures) as paths:
        beats.rename(columns={"symbol": "class"}).to_csv(
            paths[0], index=False, float_format="%.4f")
        hours.to_csv(paths[1])
        for record, path in zip(names, paths[2:]):
            plot_recording(data, beats[beats["record"] == record], f"{title}: {record}", path)
    write_annotations(beats, f"{name}_annotations", checkpoint.model)
    print_tables({"calls by hour": hours})
    print("No reference (ANNOTATOR = None): nothing was scored. "
          f"Wrote {name}_beats.csv, _hours.csv, _annotations/, {', '.join(pictures)}")


# ---- Main ----

def compare(checkpoint, net, source, target):
    """Checkpoint, net, both datasets -> dict of side -> result, with a threshold."""
    recipe = checkpoint.recipe
    by_beat = not source.is_ptbxl and not target.is_ptbxl
    def score(data, members):
        if by_beat:
            return score_beats(checkpoint, net, data, members)
        return score_strips(checkpoint, net, strips_of(data, members))
    results = {}
    if recipe.sides["test"] and recipe.split != "random":   # which trains on some of them
        results["in-domain"] = score(source, recipe.sides["test"])
    results["cross-domain"] = score(target, choose_sides(target, "inter_patient")["test"])
    threshold = 0 if by_beat else choose_threshold(score(source, recipe.sides["validation"]))
    train = split_rows(source, recipe)["train"]
    shared = {*source.patient[train]} & {*target.patient}
    if by_beat and shared:   # by the names of MIT-BIH's records, which others took over
        results["cross-domain"].notes.append(f"TRAINED ON ITS PATIENTS {' '.join(sorted(shared))}")
    trained = (source.metadata["statements"][train] >= 0).any(axis=0)
    trained = np.array(source.header.statement_names)[trained]
    asked = (results["cross-domain"].truth == 1).any()
    asked &= asked.index.isin(["abnormal", BOTH, *source.header.class_names, *trained])
    names = asked.index[asked | (asked.index == "abnormal")]
    for result in results.values():
        result.threshold = threshold
        if asked.any():   # else there are no labels
            result.truth = result.truth[names]
            result.scores = result.scores[names]
    return results


def main():
    check_choice("PRETRAINED_DATASET", PRETRAINED_DATASET, ["mitbih", "ptbxl"])
    if PRETRAINED_DATASET == TEST_DATASET:
        raise SystemExit(f"PRETRAINED_DATASET and TEST_DATASET are both {TEST_DATASET!r}: "
                         "model_evaluation.py does that")
    source = load_dataset(PRETRAINED_DATASET)
    target = load_dataset(TEST_DATASET)
    checkpoint, net = load_checkpoint(source, MODEL, source.is_ptbxl != target.is_ptbxl)
    warnings = warnings_of(source.header, checkpoint.recipe)
    if target.header.simulated and not source.header.simulated:
        warnings.append(f"SIMULATED DATA in {TEST_DATASET}: no figure is a result")
    title = ". ".join([f"{MODEL} trained on {source.name}, tested on {target.name}", *warnings])
    print(title)

    name = f"{source.name}_to_{target.name}_{MODEL}"
    if not target.is_ptbxl and target.header.annotator is None:
        check_choice("for ANNOTATOR = None, PRETRAINED_DATASET", PRETRAINED_DATASET, ["mitbih"])
        annotate(checkpoint, net, target, title, name)
        return
    results = compare(checkpoint, net, source, target)
    away = results["cross-domain"]
    if not (away.truth == 1).any(axis=None):
        with new_files(f"{name}_cross.csv") as [path]:
            scores_table(results).to_csv(path, index=False)
        print(f"{target.name} has no positive labels: nothing was scored. Wrote {name}_cross.csv")
        return
    tables = cross_tables(results)
    if hasattr(away, "scored"):
        tables |= make_tables(away.scored)
    with new_files(*(f"{name}_cross.{ending}" for ending in ("json", "csv", "png"))) as paths:
        paths[0].write_text(to_json({
            "recipe": vars(checkpoint.recipe),
            "source": vars(source.header), "target": vars(target.header),
            "warnings": warnings, "tables": tables,
            "notes": {side: result.notes for side, result in results.items()},
            "left_out": {side: result.left_out for side, result in results.items()}}))
        scores_table(results).to_csv(paths[1], index=False, float_format="%.9g")
        plot_report(results, tables, title, paths[2])
    print_tables(tables)
    for side, result in results.items():
        print(f"{side}: {'; '.join(result.notes)}. Left out: {dict(result.left_out)}")
    print(f"Wrote {name}_cross.json, .csv, .png")


if __name__ == "__main__":
    main()
