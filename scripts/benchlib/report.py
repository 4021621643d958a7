"""Samples, as lines and as tables.

A report is a list of dictionaries, one a line of a file: `{"run": ...}` says where, when and with what the lines after it
were measured; `{"configuration": who, ...}` how a balancer was configured; every other line is one sample. Tables are made
of such lines and nothing else, so that a kept file prints what its run printed.
"""

import datetime
import json
import os
import re

from .rig import CPUS, checkout, median, read, sh
from .scenarios import ONE_OFF, TABLE

LATENCIES = {"p50_us": "p50 us", "p99_us": "p99 us", "p999_us": "p99.9 us"}


def run(subjects, asked):
    """The line that opens a run."""
    def first(pattern, path):
        found = re.search(pattern, read(path), re.M)
        return found.group(1).strip() if found else "?"
    version = lambda command: (sh(command + " 2>&1", check=False).strip().splitlines() or ["?"])[0]
    return {"run": {
        "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": first(r"model name\s*:\s*(.*)", "/proc/cpuinfo"), "cpus": CPUS,
        "memory_mib": int(first(r"MemTotal:\s+(\d+)", "/proc/meminfo")) >> 10,
        "kernel": os.uname().release, "virtual": "hypervisor" in read("/proc/cpuinfo"),
        "commit": checkout(),
        "tools": f"{version('wrk -v').split(' Copyright')[0]}; {version('iperf3 -v')}",
        "subjects": {subject.name: subject.about() or {} for subject in subjects},
        "asked": asked,
    }}


def line(entry):
    """One line of a report. Five digits are more than any of it is worth; no errors, and nobody else there, go without saying."""
    def short(value):
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if isinstance(value, float):
            value = float(f"{value:.5g}")
            return int(value) if value.is_integer() else value
        return value
    if "scenario" in entry:
        entry = {key: value for key, value in entry.items() if key not in ("errors", "foreign") or value >= 0.001}
    return json.dumps(short(entry), separators=(",", ":"), ensure_ascii=False)


def load(path):
    return [json.loads(text) for text in read(path).splitlines() if text]


def clean(samples, most):
    """Samples without much foreign load, if there are at least three; and whether that is so."""
    good = [s for s in samples if s.get("foreign", 0) <= most]
    return (good, True) if len(good) >= 3 or len(good) == len(samples) else (samples, False)


def figure(values, scale=1.0):
    # A difference that is none is not told to sixteen places.
    values = [round(v * scale, 9) for v in values if v is not None]
    if not values:
        return "-"
    digits = lambda v: f"{v:.3g}" if abs(v) < 100 else f"{v:,.0f}"
    return f"{digits(median(values))} [{digits(min(values))} .. {digits(max(values))}]"


def table(head, rows):
    """A table in Markdown."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def chosen(samples, most):
    """name -> (samples that count, whether nothing disturbed them), each with what it `added`."""
    found = {}
    for sample in samples:
        found.setdefault(sample["who"], []).append(sample)
    found = {who: clean(own, most) for who, own in found.items()}
    direct = {key: median([s.get(key) for s in found["direct"][0]]) for key in ("all", "machine")} if "direct" in found else {}
    for good, _ in found.values():
        for sample in good:
            if direct.get("all") is not None and "all" in sample:
                sample["added"] = sample["all"] - direct["all"]
                sample["added_machine"] = sample["machine"] - direct["machine"]
    return found


def reference(names):
    """Whom ratios are to: haproxy, or where it does not take part nginx."""
    return next((who for kind in ("haproxy", "nginx") for who in names if who.split("-")[0] == kind), None)


def scenario(name, samples, most):
    """The section of a scenario."""
    about, found = TABLE[name], chosen(samples, most)
    values = lambda who, key: [s.get(key) for s in found[who][0]]
    to = reference(found)

    def ratio(who, key):
        mine, others = median(values(who, key)), median(values(to, key)) if to else None
        return f"{mine / others:.2f}" if mine is not None and others else "-"
    seen = {key for s in samples for key in s}
    shown = {key: label for key, label in LATENCIES.items() if key in seen}
    head = ["", "rate", "added", "x", "own", "x", "machine", *shown.values(), *["lost"] * ("lost" in seen),
            *["bulk GB/s"] * ("bulk" in seen), "foreign", "errors"]
    rows = []
    for who, (good, quiet) in found.items():
        row = [who, figure(values(who, "rate")), figure(values(who, "added")), ratio(who, "added"), figure(values(who, "own")),
               ratio(who, "own"), figure(values(who, "added_machine"))]
        row += [figure(values(who, key)) for key in shown]
        if "lost" in seen:
            row.append(figure(values(who, "lost"), 100) + " %")
        if "bulk" in seen:
            row.append(figure(values(who, "bulk")))
        foreign = median([s.get("foreign", 0) for s in good])
        row += [f"{foreign:.2f}{'' if quiet else ' !'}", str(sum(s.get("errors", 0) for s in good))]
        rows.append(row)
    said = f"CPU in {about.unit}; rate in {about.rate}." + (f" Ratios to {to}." if to else "")
    return [f"### {about.title}", "", said, ""] + table(head, rows)


def one_off(name, looks):
    """The section of what is looked at once."""
    if name == "idle":
        head = ["", "private KiB", "Pss KiB", "descriptors"]
        rows = [[s["who"], *(f"{s[key]:.2f}" for key in ("private_kib", "pss_kib", "descriptors"))] for s in looks]
    else:
        words = lambda calls: ", ".join(f"{call} {n:g}" for call, n in calls.items())
        head = ["", "one at a time, 200/s", "", "32 at once", ""]
        rows = [[s["who"], *(cell for how in ("apart", "at_once") for cell in (f"{s[how]['total']:g}", words(s[how]["calls"])))]
                for s in looks]
    return [f"### {ONE_OFF[name]}", ""] + table(head, rows)


def builds(now, before, samples, most):
    """The rows of two builds of one program beside each other; the scenarios that cost more are named too.

    Both were measured in every round, shortly after one another: the ratio of a round does not know how quick the machine
    was in it. Told is the median of the rounds' ratios. What counts is what is added to direct routing, if that took part."""
    rows, costs = [], {}
    for name in dict.fromkeys(s["scenario"] for s in samples):
        found = chosen([s for s in samples if s["scenario"] == name], most)
        if now not in found or before not in found:
            continue
        rounds = {s["round"]: s for s in found[before][0]}
        pairs = [(s, rounds[s["round"]]) for s in found[now][0] if s["round"] in rounds]

        def ratios(key):
            return [a[key] / b[key] for a, b in pairs if a.get(key) and b.get(key)]
        rows.append([name, str(len(pairs)), *(figure(ratios(key)) for key in ("added", "own", "rate", *LATENCIES))])
        costs[name] = median(ratios("added")) or median(ratios("all"))
    return rows, costs


def comparisons(lines, most):
    """Sections and costs of the builds of weir that were measured beside `weir`: name -> (Markdown, scenario -> ratio)."""
    samples = [s for s in lines if "scenario" in s and s["scenario"] in TABLE]
    names = dict.fromkeys(s["who"] for s in samples)
    found = {}
    for before in names:
        if before.startswith("weir-") and "weir" in names:
            rows, costs = builds("weir", before, samples, most)
            head = ["", "rounds", "added", "own", "rate", *LATENCIES.values()]
            found[before] = [f"## weir, as a ratio to {before}", "", "Median of the rounds' ratios [smallest .. largest].", ""] + table(head, rows), costs
    return found


# What the kernel engine is to reach: what it adds to direct routing at most, as a ratio to what a peer adds; 0 = nothing.
AIMS = {"short": {"haproxy": 0.20, "nft-dnat": 1.0}, "keepalive": 0, "bulk1": {"haproxy": 0.05}, "bulk8": 0, "udp-rtt": {"nginx": 0.08}}


def aims(samples, most):
    """The section that holds the kernel engine against its aims; nothing if it did not take part."""
    rows = []
    for name in dict.fromkeys(s["scenario"] for s in samples if s["scenario"] in AIMS):
        found = chosen([s for s in samples if s["scenario"] == name], most)
        told = lambda who, key: median([s.get(key) for s in found[who][0]]) if who in found else None
        mine = told("kernel", "added")
        if mine is None:
            continue
        wanted = AIMS[name] or {"direct": 0}
        for who, ratio in wanted.items():
            theirs = told(who, "added")
            if theirs is None:
                continue
            bound = ratio * theirs
            word = f"<= {ratio:g} x {who}" if ratio else "<= 0"
            rows.append([name, f"{mine:.3g}", word, f"{bound:.3g}", "yes" if mine <= bound else "no"])
        p99 = [told(who, "p99_us") for who in ("kernel", "haproxy")]
        if None not in p99:
            rows.append([name, f"{p99[0]:,.0f}", "p99 < haproxy's", f"{p99[1]:,.0f}", "yes" if p99[0] < p99[1] else "no"])
    head = ["", "kernel engine", "wanted", "that is", "reached"]
    return ["### The kernel engine against its aims", "", "What is added to direct routing, and p99 in us.", ""] + table(head, rows) if rows else []


def title(about):
    """The head of a run's tables."""
    asked, others = about["asked"], [a["version"] for who, a in about["subjects"].items() if a and who.split("-")[0] != "weir"]
    lines = [f"# scripts/bench, {about['when']}", "",
             f"{about['cpu']} x {about['cpus']}{' (virtual)' if about['virtual'] else ''}, {about['memory_mib']} MiB, "
             f"Linux {about['kernel']}; checkout {about['commit']}; {'; '.join([*others, about['tools']])}. "
             f"veth offloads {asked['offloads']}, {asked['rounds']} rounds of {asked['seconds']} s. `scripts/bench --help` says what "
             "the columns mean; `!` marks figures from samples that other programs disturbed.", ""]
    built = [[who, a["version"], a["build"]] for who, a in about["subjects"].items() if a.get("build")]
    return lines + (table(["", "version", "built"], built) if built else [])


def markdown(lines, wanted=lambda name: True):
    """Everything that a report says, run by run."""
    text, runs = [], []
    for entry in lines:
        if "run" in entry:
            runs.append((entry["run"], []))
        elif "scenario" in entry and wanted(entry["scenario"]):
            runs[-1][1].append(entry)
    for about, samples in runs:
        if not samples:
            continue
        most = about["asked"]["foreign"]
        text += title(about)
        for workers in dict.fromkeys(s["workers"] for s in samples):
            text += [f"## {workers} worker{'s' * (workers > 1)}", ""]
            with_these = [s for s in samples if s["workers"] == workers]
            for name in dict.fromkeys(s["scenario"] for s in with_these):
                text += section(name, [s for s in with_these if s["scenario"] == name], most)
            for more, _ in comparisons(with_these, most).values():
                text += more
            text += aims(with_these, most)
    return "\n".join(text)


def section(name, samples, most):
    return one_off(name, samples) if name in ONE_OFF else scenario(name, samples, most)
