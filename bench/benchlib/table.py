"""Prints what bench/run soft measured: every sample, the rows side by side, the goals."""
from . import goals

_ORDER = (goals.PARAT, goals.QEMU, goals.QEMU_ERMS, goals.NATIVE)
_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))


def time_text(ns):
    """A time with three digits and a fitting unit."""
    for size, unit in _TIMES:
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.2f} ns"


def value_text(row, value):
    """A median per unit of the row: a time, or MiB."""
    if value is None:
        return "-"
    return f"{value / row.count:.1f} MiB" if row.unit == "MiB" else time_text(value / row.count)


def print_samples(rows, samples):
    """All samples, in the order in which they were taken."""
    print("\nsamples (ms of a whole pass; memory in MiB)")
    for row in rows:
        for program in _ORDER:
            values = samples.get(program, {}).get(row.name)
            if values:
                scale = 1 if row.unit == "MiB" else 1e6
                listed = " ".join(f"{value / scale:.2f}" for value in values)
                print(f"  {row.name:14} {program:10} {listed}")


def print_rows(rows, medians):
    """Medians per unit, side by side, with the ratios."""
    programs = [name for name in _ORDER if medians.get(name)]
    print(f"\n{'row':14} {'per':11}" + "".join(f"{name:>11}" for name in programs)
          + f"{'qemu/parat':>12}{'erms/parat':>12}{'parat/native':>14}  goal")
    group = None
    for row in rows:
        if not any(row.name in medians[program] for program in programs):
            continue
        if row.group != group:
            group = row.group
            print(group)
        cells = [f"{value_text(row, medians[program].get(row.name)):>11}" for program in programs]
        print(f"  {row.name:12} {row.unit:11}" + "".join(cells) + _ratio_cells(row, medians))


def _ratio_cells(row, medians):
    pairs = ((goals.QEMU, goals.PARAT, 12), (goals.QEMU_ERMS, goals.PARAT, 12),
             (goals.PARAT, goals.NATIVE, 14))
    text = ""
    for over, under, width in pairs:
        value = goals.ratio(medians, over, under, row.name)
        text += f"{'-' if value is None else format(value, '.2f'):>{width}}"
    value, limit = goals.ratio(medians, goals.QEMU, goals.PARAT, row.name), goals.each_limit(row.group)
    if row.unit == "MiB" or value is None or limit is None:
        return text
    return text + f"  {'meets' if value >= limit else 'misses'} {limit:g}"


def print_goals(verdicts):
    """The goals table."""
    print("\ngoals" + ("" if verdicts else ": nothing was measured that a goal needs"))
    for verdict in verdicts:
        word = {True: "meets", False: "MISSES", None: "-"}[verdict.meets]
        text = f"  {word:7} {verdict.title}: {verdict.value:.2f}{verdict.unit}"
        if verdict.limit is not None:
            text += f" (at {'most' if verdict.at_most else 'least'} {verdict.limit:g}{verdict.unit})"
        print(text)
