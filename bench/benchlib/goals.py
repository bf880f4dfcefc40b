"""The goals of the software CPU, and whether measured medians meet them.

Medians come as {program: {row: nanoseconds}}; all programs do the same work per row."""
import math

PARAT, QEMU, QEMU_ERMS, NATIVE = "parat", "qemu", "qemu-erms", "native"
QEMU_PROGRAMS = (QEMU, QEMU_ERMS)


class Goal:
    """Rows of one kind, and how many times faster than QEMU each and their mean must be."""

    def __init__(self, group, title, each, mean=None):
        self.group = group
        self.title = title
        self.each = each
        self.mean = mean


GOALS = (
    Goal("boot", "Debian cloud kernel to init", 2.0),
    Goal("integer", "integer programs", 1.5, 4.0),
    Goal("vector", "floating point and vectors", 4.0, 10.0),
    Goal("stream", "memory streaming", 8.0, 20.0),
    Goal("system", "system calls and processes", 1.3, 2.0),
    Goal("login", "Debian's login prompt from disk", 2.0),
)
# User-mode compute may take so many times what it takes natively, in geometric mean.
NATIVE_GROUPS, NATIVE_LIMIT = ("integer", "vector"), 3.0
# The gain by a second CPU, as a share of what it is natively.
ONE_THREAD, TWO_THREADS, PARALLEL_SHARE = "one-thread", "two-threads", 0.9
# Private memory beyond guest RAM at the login prompt.
LOGIN_MEMORY, LOGIN_MEMORY_LIMIT_MIB = "login-memory", 64.0


class Verdict:
    """One line of the goals table; without a limit it is only told."""

    def __init__(self, title, value, limit, at_most=False, unit="x"):
        self.title = title
        self.value = value
        self.limit = limit
        self.at_most = at_most
        self.unit = unit

    @property
    def meets(self):
        """Whether the goal is reached; None if there is none."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def geometric_mean(values):
    """The n-th root of the product."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def ratio(medians, over, under, row):
    """How many times longer program `over` takes for a row than `under`; None if one was not measured."""
    try:
        return medians[over][row] / medians[under][row]
    except (KeyError, ZeroDivisionError):
        return None


def ratios(medians, over, under, names):
    """{row: ratio} of those rows that both have measured."""
    found = {name: ratio(medians, over, under, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def gain(times):
    """What a second thread adds: 2 if two threads do twice the work in the time of one."""
    if ONE_THREAD not in times or TWO_THREADS not in times:
        return None
    return 2 * times[ONE_THREAD] / times[TWO_THREADS]


def each_limit(group):
    """How many times faster than QEMU a row of this group must be; None if there is no such goal."""
    return next((goal.each for goal in GOALS if goal.group == group), None)


def judge(medians, groups):
    """The goals table: a Verdict for each goal whose rows were measured. `groups` is {row: group}."""
    verdicts = []
    for goal in GOALS:
        names = [name for name, group in groups.items() if group == goal.group]
        found = ratios(medians, QEMU, PARAT, names)
        if found:
            slowest = min(found, key=found.get)
            title = goal.title if len(found) == 1 else f"{goal.title}: the least, {slowest}"
            verdicts.append(Verdict(title, found[slowest], goal.each))
        if found and goal.mean:
            verdicts.append(Verdict(f"{goal.title}: geometric mean of {len(found)}",
                                    geometric_mean(found.values()), goal.mean))
    names = [name for name, group in groups.items() if group == "stream"]
    found = ratios(medians, QEMU_ERMS, PARAT, names)
    if found:
        verdicts.append(Verdict(f"memory streaming, QEMU without ERMS: geometric mean of {len(found)}",
                                geometric_mean(found.values()), None))
    return verdicts + _judge_parallel(medians) + _judge_native(medians, groups) + _judge_memory(medians)


def _judge_parallel(medians):
    ours, native = gain(medians.get(PARAT, {})), gain(medians.get(NATIVE, {}))
    if ours is None or native is None:
        return []
    title = f"two vCPUs against one ({ours:.2f}), share of the native gain ({native:.2f})"
    return [Verdict(title, ours / native, PARALLEL_SHARE, unit="")]


def _judge_native(medians, groups):
    names = [name for name, group in groups.items() if group in NATIVE_GROUPS]
    found = ratios(medians, PARAT, NATIVE, names)
    if not found:
        return []
    title = f"user-mode compute, times native: geometric mean of {len(found)}"
    return [Verdict(title, geometric_mean(found.values()), NATIVE_LIMIT, at_most=True)]


def _judge_memory(medians):
    used = medians.get(PARAT, {}).get(LOGIN_MEMORY)
    if used is None:
        return []
    title = "private memory beyond guest RAM at the login prompt"
    return [Verdict(title, used, LOGIN_MEMORY_LIMIT_MIB, at_most=True, unit=" MiB")]
