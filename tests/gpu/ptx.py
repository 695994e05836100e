"""Run the PTX of a kernel on the CPU, the threads of a block in step, and check each access to memory.

What the simulator can't show since it runs Python: what the compiler made of integers, addresses and intrinsics.  And what
a GPU may not show on a lucky day: copies to shared memory arrive at the wait for them and not before, an address must be a
multiple of the access, an access must stay inside one array, two threads must not touch a word of shared memory between two
barriers if one of them writes, nor write the same element, and a barrier is met by all threads at the same place.

Groups of threads that stand at the same instruction run together, the group that is furthest behind first.
"""

import mmap
import operator
import re

import numpy as np

TYPES = {"pred": "?", "f32": "f4", "f64": "f8"} | {
    f"{kind}{bits}": f"{'i' if kind == 's' else 'u'}{bits // 8}" for kind in "bus" for bits in (8, 16, 32, 64)
}
WINDOW = {"shared": 1 << 60, "local": 1 << 61}  # where other memory lies among addresses of all kinds
MASK = np.uint64(1 << 59)


class Hazard(Exception):
    """What a GPU would not always tell."""


def lazily(count, dtype):
    """Return zeros that take memory where they are touched alone."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    room = max(1, count * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, room, flags=flags), dtype, count)


def trimmed(text):
    """Return the declarations and instructions of a module's only kernel, without comments."""
    text = re.sub(r"//.*", "", text)
    head, _, body = text[text.index(".entry") :].partition("{")
    shared = re.findall(r"\.shared\s+\.align (\d+) \.b8 (\w+)\[(\d+)\]", text)
    return re.findall(r"\.param \.(\w+) (\w+)", head), shared, body.rpartition("}")[0]


def signed_division(a, b):
    return np.where(
        (a < 0) != (b < 0), -(np.abs(a) // np.maximum(np.abs(b), 1)), np.abs(a) // np.maximum(np.abs(b), 1)
    )


def divided(a, b, kind):
    if kind[0] == "f":
        return a / b
    if kind[0] == "u":
        return a // np.maximum(b, 1)
    return signed_division(a, b)


def wide(a, b, kind):
    """Multiply to twice the bits."""
    to = np.dtype(TYPES[f"{kind[0]}{2 * int(kind[1:])}"])
    return a.astype(to) * np.asarray(b).astype(to)


def high(a, b, kind):
    if kind[1:] == "32":
        return (wide(a, b, kind) >> 32).astype(TYPES[kind])
    exact = np.asarray(a, object) * np.asarray(b, object)
    return np.asarray(exact >> 64, object).astype(TYPES[kind])


def shift(function):
    def shifted(a, b, kind):
        bits = 8 * np.dtype(TYPES[kind]).itemsize
        b = np.asarray(b).astype(a.dtype)
        over = -1 if kind[0] == "s" and function is operator.rshift else 0
        result = function(a, np.minimum(b.astype("u8"), bits - 1).astype(a.dtype))
        return np.where(b.astype("u8") >= bits, np.where(a < 0, a.dtype.type(over), a.dtype.type(0)), result)

    return shifted


def inserted(a, b, at, count, kind):
    a, b, at, count = (np.asarray(v).astype("u8") for v in (a, b, at, count))
    mask = ((np.uint64(1) << count) - np.uint64(1)) << at
    return ((b & ~mask) | ((a << at) & mask)).astype(TYPES[kind])


def extracted(a, at, count, kind):
    at, count = np.asarray(at).astype("u8"), np.asarray(count).astype("u8")
    assert kind[0] != "s", "sign extension is not written"
    return ((a.astype("u8") >> at) & ((np.uint64(1) << count) - np.uint64(1))).astype(TYPES[kind])


def permuted(a, b, selector, kind):
    """Take each byte of the result from the eight of ``a`` and ``b``, by four bits of the selector."""
    both, selector = a.astype("u8") | b.astype("u8") << np.uint64(32), int(selector)
    assert not selector & 0x8888, "sign extension is not written"
    result = np.zeros_like(both)
    for i in range(4):
        from_bit = np.uint64(8 * (selector >> 4 * i & 7))
        result |= (both >> from_bit & np.uint64(255)) << np.uint64(8 * i)
    return result.astype(TYPES[kind])


def fused(a, b, c, down=False):
    """Multiply and add with one rounding, to the nearest or down."""
    exact = a.astype("f8") * b + c
    result = exact.astype(a.dtype)
    return np.where(result > exact, np.nextafter(result, -np.inf, dtype=a.dtype), result) if down else result


def saturated(value):
    """Clamp to [0, 1], which a NaN is below."""
    return np.nan_to_num(np.clip(value, 0, 1))


def of_two(function):
    return lambda a, b, kind: function(a, b)


OPERATIONS = {
    "add": of_two(operator.add), "sub": of_two(operator.sub), "mul": of_two(operator.mul), "mul.lo": of_two(operator.mul),
    "mul.hi": high, "mul.wide": wide, "div": divided, "rem": lambda a, b, kind: a - b * divided(a, b, kind),
    "and": of_two(operator.and_), "or": of_two(operator.or_), "xor": of_two(operator.xor),
    "shl": shift(operator.lshift), "shr": shift(operator.rshift), "min": of_two(np.fmin), "max": of_two(np.fmax),
    "not": lambda a, kind: ~a, "neg": lambda a, kind: -a, "abs": lambda a, kind: np.abs(a),
    "fma": lambda a, b, c, kind: fused(a, b, c),
    "mad.lo": lambda a, b, c, kind: a * b + c, "bfi": inserted, "bfe": extracted, "prmt": permuted,
    "sqrt": lambda a, kind: np.sqrt(a), "rcp": lambda a, kind: 1 / a, "rsqrt": lambda a, kind: 1 / np.sqrt(a),
    "ex2": lambda a, kind: np.exp2(a), "lg2": lambda a, kind: np.log2(a), "tanh": lambda a, kind: np.tanh(a),
    "copysign": lambda a, b, kind: np.copysign(b, a), "mov": lambda a, kind: a, "cvta": lambda a, kind: a,
}  # fmt: skip
COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip


def compared(name, a, b, kind):
    if name in ("num", "nan"):
        return (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if name[:2] in COMPARISONS and name[2:] in ("", "u"):
        result = COMPARISONS[name[:2]](a, b)
        if kind[0] == "f":
            unordered = np.isnan(a) | np.isnan(b)
            return result | unordered if name[2:] else result & ~unordered
        return result
    raise NotImplementedError(name)


def converted(value, name, to, kind):
    if kind[0] == "f" and to[0] != "f":
        how = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}[
            re.search(r"\.(r.i)", name)[1]
        ]
        bounds = np.iinfo(TYPES[to])
        return np.clip(np.nan_to_num(how(value.astype("f8"))), bounds.min, bounds.max).astype(TYPES[to])
    if kind[0] == "f" and (how := re.search(r"\.(r.i)", name)):
        value = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}[how[1]](value)
    value = np.asarray(value).astype(TYPES[to])
    return saturated(value) if ".sat" in name and to[0] == "f" else value


class Kernel:
    """PTX, read; ``run`` runs it."""

    def __init__(self, text):
        self.params, shared, body = trimmed(text)
        self.symbols, self.shared = {}, 0
        for align, name, size in shared:
            at = -(-self.shared // int(align)) * int(align)
            self.symbols[name], self.shared = at, at + int(size)
        self.local = 0
        for name, size in re.findall(r"\.local \.align \d+ \.b8\s+(\w+)\[(\d+)\]", body):
            self.symbols[name], self.local = self.local, self.local + int(size)
        self.registers = {}
        for kind, name, count in re.findall(r"\.reg \.(\w+)\s+(%\w+)<(\d+)>", body):
            self.registers |= {f"{name}{i}": np.dtype(TYPES[kind]) for i in range(int(count))}
        for kind, name in re.findall(r"\.reg \.(\w+)\s+(%\w+);", body):
            self.registers[name] = np.dtype(TYPES[kind])
        self.code, self.labels, texts = [], {}, []
        body = re.sub(r"(?m)^\s*\.(reg|local|loc|pragma|branchtargets)[^;]*;", "", body)
        for piece in body.split(";"):
            piece = piece.strip()
            while label := re.match(r"(\$?\w+):\s*", piece):
                self.labels[label[1]] = len(texts)
                piece = piece[label.end() :]
            if piece:
                texts.append(" ".join(piece.split()))
        self.texts = texts
        self.code = [self.read(text) for text in texts]
        self.starts = frozenset(self.labels.values())
        self.sizes = [4 if kind.endswith("32") else 8 for kind, _ in self.params]

    # operands

    def operand(self, text, kind):
        """Return the function of a run that reads an operand."""
        dtype = np.dtype(TYPES[kind])
        if text in self.registers:
            own = self.registers[text]
            if own.itemsize == dtype.itemsize:
                return lambda run: run.registers[text].view(dtype)
            return lambda run: run.registers[text].astype(f"u{dtype.itemsize}").view(dtype)
        if text.startswith("%"):
            return lambda run: run.special[text].astype(dtype)
        if text in self.symbols:
            value = dtype.type(self.symbols[text])
        elif real := re.match(r"0([fFdD])([0-9A-Fa-f]+)$", text):
            size = 4 if real[1] in "fF" else 8
            value = np.array(int(real[2], 16), f"u{size}").view(f"f{size}")[()]
        elif kind == "pred":
            value = np.bool_(int(text))
        else:
            bits = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
            value = np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]
        return lambda run: value

    def target(self, text):
        """Return the function that writes to a register, of threads in a mask or of all."""
        if text == "_":
            return lambda run, mask, value: None
        own = self.registers[text]

        def write(run, mask, value):
            value = np.asarray(value)
            if value.dtype != own:
                value = value.view(own) if value.dtype.itemsize == own.itemsize else value.astype(own)
            np.copyto(run.registers[text], value, where=True if mask is None else mask)

        return write

    def address(self, text):
        """Return the function that reads an address."""
        base, _, offset = text.strip("[] ").partition("+")
        base, offset = base.strip(), np.uint64(int(offset or 0) % 2**64)
        if base in self.registers and self.registers[base].itemsize == 4:
            return lambda run: run.registers[base].astype("u8") + offset
        read = self.operand(base, "u64")
        return lambda run: np.broadcast_to(read(run) + offset, run.count)

    # instructions

    def read(self, text):
        """Return (what it is, the predicate, the rest) of an instruction."""
        found = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)$", text)
        negated, predicate, name, rest = found.groups()
        when = None
        if predicate:
            when = (
                (lambda run: ~run.registers[predicate]) if negated else (lambda run: run.registers[predicate])
            )
        operands = [p.strip() for p in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,])+", rest)]
        if name.startswith("bra"):
            return "branch", when, operands[0]
        if name in ("ret", "exit"):
            return "end", when, None
        if name.startswith(("bar.sync", "barrier.sync")):
            return "barrier", when, None
        return "do", when, self.doing(name, operands)

    def doing(self, name, operands):
        if name.startswith("cp.async.wait"):
            return lambda run, mask: run.arrive(mask)
        if name.startswith("cp.async.c"):
            to, source, size, wanted = operands
            to, source, wanted = self.address(to), self.address(source), self.operand(wanted, "u32")
            return lambda run, mask: run.copy(mask, to(run), source(run), int(size), wanted(run))
        parts = name.split(".")
        if parts[0] in ("ld", "st"):
            return self.moving(parts, operands)
        if parts[0] == "red":
            at, value, dtype = (
                self.address(operands[0]),
                self.operand(operands[1], parts[-1]),
                TYPES[parts[-1]],
            )
            return lambda run, mask: run.add(mask, at(run), np.dtype(dtype), value(run))
        kind = next(p for p in reversed(parts) if p in TYPES)
        if parts[0] == "mov" and "{" in operands[0] + operands[1]:
            return self.regrouping(kind, operands)
        if parts[0] == "cvt":
            to = next(p for p in parts if p in TYPES)
            write, value = self.target(operands[0]), self.operand(operands[1], kind)
            return lambda run, mask: write(run, mask, converted(value(run), name, to, kind))
        if parts[0] == "cvta":
            move = {"shared": WINDOW["shared"], "local": WINDOW["local"]}.get(
                next(p for p in parts[1:] if p != "to"), 0
            )
            move = np.uint64((-move if "to" in parts else move) % 2**64)
            write, value = self.target(operands[0]), self.operand(operands[1], kind)
            return lambda run, mask: write(run, mask, value(run) + move)
        if parts[0] == "setp":
            write, values = self.target(operands[0]), [self.operand(o, kind) for o in operands[1:3]]
            assert len(operands) == 3, name
            return lambda run, mask: write(
                run, mask, np.broadcast_to(compared(parts[1], *(v(run) for v in values), kind), run.count)
            )
        if parts[0] == "selp":
            write, a, b = self.target(operands[0]), *(self.operand(o, kind) for o in operands[1:3])
            c = self.operand(operands[3], "pred")
            return lambda run, mask: write(run, mask, np.where(c(run), a(run), b(run)))
        if parts[0] == "mad" and parts[1] == "wide":
            long = f"{kind[0]}{2 * int(kind[1:])}"
            write, (a, b) = self.target(operands[0]), [self.operand(o, kind) for o in operands[1:3]]
            c = self.operand(operands[3], long)
            return lambda run, mask: write(run, mask, wide(np.asarray(a(run)), b(run), kind) + c(run))
        long = ".".join(parts[:2])
        function = OPERATIONS[long if long in OPERATIONS else parts[0]]
        if long == "fma.rm":
            function = lambda a, b, c, kind: fused(a, b, c, True)
        if "sat" in parts:
            exact = function
            function = lambda *operands: saturated(exact(*operands))
        write, kinds = self.target(operands[0]), [kind] * len(operands[1:])
        if parts[0] in ("shl", "shr"):
            kinds[1] = "u32"
        if parts[0] in ("bfi", "bfe"):
            kinds[-2:] = ["u32", "u32"]
        values = [self.operand(o, k) for o, k in zip(operands[1:], kinds, strict=True)]
        return lambda run, mask: write(run, mask, function(*(np.asarray(v(run)) for v in values), kind))

    def regrouping(self, kind, operands):
        """Take a register apart or put it together."""
        dtype = np.dtype(TYPES[kind])
        if operands[0].startswith("{"):
            targets = [self.target(o.strip()) for o in operands[0].strip("{}").split(",")]
            value, part = self.operand(operands[1], kind), np.dtype(f"u{dtype.itemsize // len(targets)}")

            def apart(run, mask):
                pieces = np.broadcast_to(value(run), run.count).copy().view(part).reshape(run.count, -1)
                for i, write in enumerate(targets):
                    write(run, mask, pieces[:, i].copy())

            return apart
        names = operands[1].strip("{}").split(",")
        part = f"b{8 * dtype.itemsize // len(names)}"
        values, write = [self.operand(o.strip(), part) for o in names], self.target(operands[0])
        return lambda run, mask: write(
            run, mask, np.stack([np.broadcast_to(v(run), run.count) for v in values], -1).view(dtype)[:, 0]
        )

    def moving(self, parts, operands):
        """Load or store."""
        dtype = np.dtype(TYPES[parts[-1]])
        space = next((p for p in parts if p in ("param", "shared", "local", "global")), "any")
        there, here = (1, 0) if parts[0] == "ld" else (0, 1)
        names = [o.strip() for o in operands[here].strip("{}").split(",")]
        if space == "param":
            found = operands[1].strip("[] ")
            which, write = [name for _, name in self.params].index(found), self.target(names[0])
            return lambda run, mask: write(run, mask, run.parameters[which])
        at = self.address(operands[there])
        if parts[0] == "ld":
            targets = [self.target(n) for n in names]

            def load(run, mask):
                for write, value in zip(
                    targets, run.load(mask, space, at(run), dtype, len(names)), strict=True
                ):
                    write(run, mask, value)

            return load
        values = [self.operand(n, parts[-1]) for n in names]
        return lambda run, mask: run.store(mask, space, at(run), dtype, [v(run) for v in values])

    def run(self, blocks, threads, parameters, memory, profile=None):
        """Run those ``blocks`` of a grid; ``memory`` are arrays of bytes, ``profile`` a Counter by (instruction, what)."""
        run = Run(self, threads, parameters, memory, profile)
        with np.errstate(all="ignore"):
            for block in blocks:
                run.block(block)


def elements(memory, dtype):
    """View bytes as elements."""
    return memory[: memory.size // dtype.itemsize * dtype.itemsize].view(dtype)


class Run:
    """A block of threads."""

    def __init__(self, kernel, threads, parameters, memory, profile):
        self.kernel, self.count, self.profile = kernel, threads, profile
        self.parameters = [
            np.array(int(p) % 2 ** (8 * size), f"u{size}")
            for p, size in zip(parameters, kernel.sizes, strict=True)
        ]
        self.lanes = np.arange(threads)
        self.memory = sorted((m for m in memory if m.size), key=lambda m: m.ctypes.data)
        self.begins = np.array([m.ctypes.data for m in self.memory], "u8")
        self.written = [
            lazily(-(-m.size // 4), "i8") for m in self.memory
        ]  # by which thread of the grid, from 1 on
        self.special = {"%ntid.x": np.array(threads), "%tid.x": self.lanes}
        for axis in ("y", "z"):
            self.special |= {
                f"%tid.{axis}": np.array(0),
                f"%ctaid.{axis}": np.array(0),
                f"%ntid.{axis}": np.array(1),
            }
        for name, at in kernel.symbols.items():
            self.special[name] = np.array(at)

    def block(self, number):
        k = self.kernel
        self.special["%ctaid.x"], self.grid = np.array(number), number * self.count + 1
        self.registers = {name: np.zeros(self.count, dtype) for name, dtype in k.registers.items()}
        for array in self.registers.values():
            array.view("u1")[:] = 0x5A if array.dtype != bool else 1  # what is not written shows
        self.shared, self.own = np.full(k.shared + 16, 255, "u1"), np.full((self.count, k.local), 255, "u1")
        words = -(-k.shared // 4) + 4
        self.epoch, self.coming = 0, []
        self.writer, self.writes = np.full(words, -1), np.full(words, -1)  # who, and before which barrier
        self.reader, self.reads = np.full(words, -1), np.full(words, -1)
        self.flying = np.zeros(words, bool)
        groups, waiting, ended = {0: np.ones(self.count, bool)}, {}, np.zeros(self.count, bool)
        while groups:
            self.at = min(groups)
            self.go_on(groups.pop(self.at), groups, waiting, ended)
            if not groups and waiting:
                (at, mask), *others = waiting.items()
                if others or not mask.all():
                    raise Hazard(
                        f"not all threads are at the barrier {at}: {[k.texts[a] for a, _ in others]}"
                    )
                self.epoch += 1
                groups, waiting = {at + 1: mask}, {}
        if self.coming:
            raise Hazard("a copy is not waited for")

    def go_on(self, mask, groups, waiting, ended):
        """Run a group until it parts, waits or ends."""
        k, at = self.kernel, self.at
        active = None if mask.all() else mask
        while True:
            if at in k.starts and at in groups:
                mask = mask | groups.pop(at)
                active = None if mask.all() else mask
            self.at = at
            what, when, rest = k.code[at]
            wanted = mask if when is None else mask & when(self)
            if self.profile is not None:
                self.profile[at, "run"] += len(np.unique(self.lanes[mask] // 32))
            if what == "do":
                if when is None:
                    rest(self, active)
                elif wanted.any():
                    rest(self, wanted)
                at += 1
                continue
            rested = mask & ~wanted
            if what == "branch":
                to = k.labels[rest]
                if not rested.any() and not groups:
                    at = to
                    continue
                if not wanted.any():
                    at += 1
                    continue
                groups[to] = groups.get(to, False) | wanted
            elif what == "end":
                ended |= wanted
            elif wanted.any():
                if ended.any():
                    raise Hazard("threads have ended that a barrier waits for")
                waiting[at] = waiting.get(at, False) | wanted
            if rested.any():
                groups[at + 1] = groups.get(at + 1, False) | rested
            return

    # memory

    def hazard(self, what, mask, bad, at):
        lane = self.lanes[mask][bad][0] if isinstance(bad, np.ndarray) else bad
        raise Hazard(
            f"{what}: thread {lane} of block {self.grid // self.count}, {self.kernel.texts[self.at]}, {at}"
        )

    def everyone(self, mask):
        return slice(None) if mask is None else mask

    def found(self, who, at, width):
        """Return (array's number, threads, offsets) of accesses to global memory."""
        which = np.searchsorted(self.begins, at, side="right").astype(int) - 1
        for i in np.unique(which):
            own = which == i
            offset = (at[own] - self.begins[i]).astype(int)
            if i < 0 or (bad := offset + width > self.memory[i].size).any():
                bad = own if i < 0 else np.flatnonzero(own)[bad]
                self.hazard(f"{width} bytes beside an array", who, bad, hex(int(at[own][0])))
            yield i, own, offset

    def spaces(self, space, at):
        """Return the space of an address of any kind."""
        if space != "any":
            return space, at
        kinds = at // MASK
        if (kinds == 2).all():
            return "shared", at - np.uint64(WINDOW["shared"])
        if (kinds == 4).all():
            return "local", at - np.uint64(WINDOW["local"])
        assert (kinds == 0).all(), "addresses of several kinds"
        return "global", at

    def load(self, mask, space, at, dtype, count):
        who = self.everyone(mask)
        space, here = self.spaces(space, at[who])
        width, results = dtype.itemsize * count, [np.zeros(self.count, dtype) for _ in range(count)]
        if (bad := here % np.uint64(width) != 0).any():
            self.hazard(f"not on {width} bytes", who, bad, hex(int(here[bad][0])))
        self.counted(space, who, here, width)
        if space == "shared":
            self.touch(who, here, width, False)
        lanes = self.lanes[who]
        if space in ("shared", "local"):
            for i, result in enumerate(results):
                place = here.astype(int) // dtype.itemsize + i
                of_all = space == "shared"
                result[who] = (
                    elements(self.shared, dtype)[place] if of_all else self.own.view(dtype)[lanes, place]
                )
        else:
            for number, own, offset in self.found(who, here, width):
                for i, result in enumerate(results):
                    place = offset + i * dtype.itemsize
                    result[lanes[own]] = elements(self.memory[number], dtype)[place // dtype.itemsize]
                    before = self.written[number][place // 4]
                    if ((before > 0) & (before != self.grid + lanes[own])).any():
                        raise Hazard(f"{self.kernel.texts[self.at]} reads what another thread writes")
        return results

    def store(self, mask, space, at, dtype, values):
        who = self.everyone(mask)
        space, here = self.spaces(space, at[who])
        width = dtype.itemsize * len(values)
        if (bad := here % np.uint64(width) != 0).any():
            self.hazard(f"not on {width} bytes", who, bad, hex(int(here[bad][0])))
        self.counted(space, who, here, width)
        values = [np.broadcast_to(v, self.count)[who] for v in values]
        lanes = self.lanes[who]
        if space == "shared":
            self.touch(who, here, width, True)
        if space in ("shared", "local"):
            for i, value in enumerate(values):
                place = here.astype(int) // dtype.itemsize + i
                if space == "shared":
                    elements(self.shared, dtype)[place] = value
                else:
                    self.own.view(dtype)[lanes, place] = value
            return
        for number, own, offset in self.found(who, here, width):
            threads, writer = self.grid + lanes[own], self.written[number]
            for i, value in enumerate(values):
                place = offset + i * dtype.itemsize
                before = writer[place // 4]
                if (bad := (before > 0) & (before != threads)).any():
                    self.hazard("two threads write", who, np.flatnonzero(own)[bad], place[bad][0])
                writer[place // 4] = threads
                if (bad := writer[place // 4] != threads).any():
                    self.hazard("two threads write", who, np.flatnonzero(own)[bad], place[bad][0])
                elements(self.memory[number], dtype)[place // dtype.itemsize] = value[own]

    def add(self, mask, at, dtype, value):
        """Add to global memory, as atomic instructions do."""
        who = self.everyone(mask)
        self.counted("global", who, at[who], dtype.itemsize)
        added = np.broadcast_to(value, self.count)[who]
        for number, own, offset in self.found(who, at[who], dtype.itemsize):
            np.add.at(elements(self.memory[number], dtype), offset // dtype.itemsize, added[own])

    def touch(self, who, here, width, writing, flying=False):
        """Check an access to shared memory against those since the barrier."""
        lanes, first = self.lanes[who], here.astype(int) // 4
        if (bad := here.astype(int) + width > self.kernel.shared).any():
            self.hazard("beside shared memory", who, bad, int(here[bad][0]))
        for i in range(max(1, width // 4)):
            word = first + i
            if (bad := self.flying[word]).any():
                self.hazard("a copy is under way there", who, bad, int(word[bad][0]))
            if (bad := (self.writes[word] == self.epoch) & (self.writer[word] != lanes)).any():
                self.hazard(
                    f"no barrier since thread {self.writer[word[bad][0]]} wrote", who, bad, int(word[bad][0])
                )
            if writing:
                if (bad := (self.reads[word] == self.epoch) & (self.reader[word] != lanes)).any():
                    self.hazard("no barrier since another thread read", who, bad, int(word[bad][0]))
                self.writer[word], self.writes[word] = lanes, self.epoch
                if (self.writer[word] != lanes).any():
                    self.hazard("two threads write at once", who, self.writer[word] != lanes, int(word[0]))
                self.flying[word] = flying
            else:
                again = self.reads[word] == self.epoch
                self.reader[word] = np.where(again & (self.reader[word] != lanes), -2, lanes)
                shared_by = np.bincount(word - word.min()) > 1
                self.reader[word[shared_by[word - word.min()]]] = -2
                self.reads[word] = self.epoch

    def copy(self, mask, to, source, width, wanted):
        """Start a copy to shared memory: zeros where fewer bytes are wanted."""
        who = self.everyone(mask)
        to, source = to[who], source[who]
        to = np.where(to >= np.uint64(WINDOW["shared"]), to - np.uint64(WINDOW["shared"]), to)
        wanted = np.broadcast_to(wanted, self.count)[who]
        assert set(np.unique(wanted)) <= {0, width}
        self.counted("shared", who, to, width)
        for name, at in (("to", to), ("from", source)):
            if (bad := at % np.uint64(width) != 0).any():
                self.hazard(f"{name} not on {width} bytes", who, bad, hex(int(at[bad][0])))
        content, real = np.zeros((len(to), width), "u1"), wanted > 0
        if real.any():
            self.counted("global", np.flatnonzero(real), source[real], width)
            lanes = np.flatnonzero(real)
            for number, own, offset in self.found(self.lanes[who][real], source[real], width):
                content[lanes[own]] = self.memory[number][offset[:, None] + np.arange(width)]
        self.touch(who, to, width, True, flying=True)
        self.coming.append((self.lanes[who], to.astype(int), content))

    def arrive(self, mask):
        """Wait for copies of the threads."""
        ready = np.ones(self.count, bool) if mask is None else mask
        left = []
        for lanes, to, content in self.coming:
            own = ready[lanes]
            place = to[own][:, None] + np.arange(content.shape[1])
            self.shared[place] = content[own]
            self.flying[place // 4] = False
            if not own.all():
                left.append((lanes[~own], to[~own], content[~own]))
        self.coming = left

    def counted(self, space, who, at, width):
        """Count, for each warp, passes over the banks of shared memory, or sectors of 32 bytes of global memory.

        A pass serves lanes with up to 128 bytes, of 16 bytes each 8 lanes, or 16 if all i and i^1 read the same or all i
        and i^2 do.
        """
        if self.profile is None or space not in ("shared", "global"):
            return
        lanes = self.lanes[who]
        for warp in np.unique(lanes // 32):
            own = lanes // 32 == warp
            a, key = at[own].astype(int), (self.at, space)
            if space == "global":
                sectors = np.unique((a[:, None] + np.arange(0, width, 4)) // 32)
                self.profile[key] += sectors.size
                self.profile[self.at, "global ideal"] += -(-len(np.unique(a)) * width // 32)
                continue
            of_lane = np.full(32, -1)
            of_lane[lanes[own] % 32] = a
            per = max(1, 128 // width)
            for half in of_lane.reshape(-1, max(16, per)):
                i = np.arange(len(half))
                alike = any((half == half[i ^ step]).all() for step in (1, 2))
                for part in [half] if alike else half.reshape(-1, per):
                    words = np.unique(part[part >= 0][:, None] // 4 + np.arange(max(1, width // 4)))
                    if words.size:
                        self.profile[key] += int(np.bincount(words % 32).max())
            self.profile[self.at, "shared ideal"] += -(-len(np.unique(a)) * width // 128)
