# SPDX-License-Identifier: Apache-2.0
"""Medians, spread, ratios, and the lines they are printed on."""

import statistics


class Series:
    """Measurements of one thing, in one unit."""

    def __init__(self, name, values, unit="ms"):
        self.name, self.values, self.unit = name, [float(value) for value in values], unit

    def median(self):
        return statistics.median(self.values)

    def text(self):
        digits = 0 if self.median() >= 100 else 1 if self.median() >= 10 else 2
        low, high = min(self.values), max(self.values)
        return f"{self.median():.{digits}f} {self.unit} ({low:.{digits}f}–{high:.{digits}f}, n={len(self.values)})"

    def json(self):
        return {"name": self.name, "unit": self.unit, "values": self.values, "median": self.median()}


class Check:
    """One target. Against a peer the figure is the ratio of the medians, else the median itself. `least`: not to be
    below it."""

    def __init__(self, series, limit, peer=None, strict=False, limit_text=None, least=False):
        self.series, self.peer, self.limit, self.strict = series, peer, limit, strict
        self.figure = series.median() / peer.median() if peer else series.median()
        self.met = self.figure >= limit if least else self.figure < limit if strict else self.figure <= limit
        sign = "≥" if least else "<" if strict else "≤"
        self.target = limit_text or (f"{sign} {limit:.3g} ×" if peer else f"{sign} {limit:g} {series.unit}")

    def text(self):
        figure = f"{self.figure:.3f} ×" if self.peer else f"{self.figure:.1f} {self.series.unit}"
        against = f" of {self.peer.name} {self.peer.text()}" if self.peer else ""
        return (f"{'met   ' if self.met else 'MISSED'} {figure:>10}  target {self.target:<18} "
                f"{self.series.name} {self.series.text()}{against}")

    def json(self):
        return {"series": self.series.json(), "peer": self.peer.json() if self.peer else None, "figure": self.figure,
                "target": self.target, "met": self.met}


class Phases:
    """Where the time of an operation goes, by the daemon's own clock: medians over the rounds."""

    def __init__(self, name):
        self.name, self.rounds = name, []

    def add(self, phases):
        self.rounds.append(phases)

    def text(self):
        steps = list(dict.fromkeys(step for phases in self.rounds for step in phases))
        parts = (f"{step} {statistics.median(p.get(step, 0.0) for p in self.rounds):.1f}" for step in steps)
        return f"{self.name}: " + ", ".join(parts) + " ms"


class Result:
    def __init__(self, title):
        self.title, self.checks, self.notes = title, [], []

    def check(self, *args, **options):
        self.checks.append(Check(*args, **options))

    def note(self, text):
        self.notes.append(text if isinstance(text, str) else text.text())

    def lines(self, number):
        yield f"{number}. {self.title}"
        for check in self.checks:
            yield "   " + check.text()
        for note in self.notes:
            yield "          " + note

    def json(self):
        return {"title": self.title, "checks": [check.json() for check in self.checks], "notes": self.notes}
