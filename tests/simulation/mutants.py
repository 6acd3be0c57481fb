"""Mutate the core and run the simulation alone against each mutant: ``python -m simulation.mutants``.

Every place of every operator is one mutant, none is sampled away. A mutant is killed when an invariant breaks, a
function raises what it must not raise, or a schedule does not end. A mutant within a function replaces its code in a
forked process; any other is imported from its mutated source.

Not mutated: docstrings, annotations, and texts for people (string constants with a blank, and parts of f-strings).
"""

import argparse
import ast
import concurrent.futures
import copy
import importlib.abc
import importlib.util
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from types import CodeType

CORE = Path(__file__).parents[2] / "layers" / "core" / "python"
MODULES = (
    "glassbox.incidents.model",
    "glassbox.incidents.decisions",
    "glassbox.incidents.workflow",
    "glassbox.aws.incidents_table",
    "glassbox.aws.counts_table",
)
KILLED, SURVIVED = "killed", "survived"
SCHEDULE_SECONDS = 10  # of CPU: a schedule takes 0.02

COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.Mod: ast.Mult,
}


def variants(node):
    """Yield (operator, replacement) for each mutation of one node; the tree is not changed."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield "boolean", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        for i in range(len(node.values)):
            rest = [*node.values[:i], *node.values[i + 1 :]]
            yield "boolean", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
        changed = copy.copy(node)
        changed.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", changed
    elif isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in _constants(node.value))
    elif isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            yield f"keyword {keyword.arg}", ast.Call(node.func, node.args, rest)
    yield from _statements(node)
    yield from _conditions(node)


def _constants(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    if isinstance(value, str) and value and " " not in value:
        return [value + "x"]
    return []


def _statements(node):
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return value", ast.Return(ast.Constant(None))
    if isinstance(
        node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Return)
    ):
        yield "statement", ast.Pass()
    if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Yield, ast.YieldFrom)):
        yield "statement", ast.Pass()


def _is_none(node):
    return isinstance(node, ast.Constant) and node.value is None


def _conditions(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", node.operand
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield "condition", changed
    if isinstance(node, ast.comprehension):
        for i, test in enumerate(node.ifs):
            changed = copy.copy(node)
            changed.ifs = [*node.ifs[:i], ast.UnaryOp(ast.Not(), test), *node.ifs[i + 1 :]]
            yield "condition", changed


def places(tree):
    """Yield (parent, field, index, node, qualified name) of the nodes that may be mutated."""

    def walk(parent, path):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or isinstance(
                    node, (ast.JoinedStr, ast.Import, ast.ImportFrom)
                ):
                    continue
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    continue
                yield parent, field, index, node, path
                inner = path
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not _in_function(path):
                    inner = (*path, (node.name, isinstance(node, ast.FunctionDef)))
                yield from walk(node, inner)

    yield from walk(tree, ())


def _in_function(path):
    return any(is_function for _, is_function in path)


class Mutant:
    """One mutation of one module: where, what, and the mutated tree."""

    def __init__(self, number, module, operator, line, before, after, function, source):
        self.number, self.module, self.operator, self.line = number, module, operator, line
        self.before, self.after, self.function, self.source = before, after, function, source
        self.decorators = set(re.findall(r"^@(\w+)", source, re.MULTILINE))

    @property
    def key(self):
        return f"{self.module}:{self.line}.{self.number} {self.operator}: {self.before} => {self.after}"


def mutants():
    """Return every mutant of MODULES."""
    found = []
    for module in MODULES:
        path = CORE / (module.replace(".", "/") + ".py")
        tree = ast.parse(path.read_text())
        for parent, field, index, node, qualified in list(places(tree)):
            for operator, replacement in variants(node):
                _put(parent, field, index, replacement)
                ast.copy_location(replacement, node)
                source = ast.unparse(ast.fix_missing_locations(tree))
                _put(parent, field, index, node)
                name = ".".join(name for name, _ in qualified) if _in_function(qualified) else None
                line = getattr(node, "lineno", None) or getattr(node, "target", parent).lineno
                before, after = _short(node), _short(replacement)
                found.append(
                    Mutant(
                        sum(f.module == module and f.line == line for f in found),
                        module,
                        operator,
                        line,
                        before,
                        after,
                        name,
                        source,
                    )
                )
    return found


def _put(parent, field, index, node):
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _short(node):
    text = "in " + ast.unparse(node.target) if isinstance(node, ast.comprehension) else ast.unparse(node)
    if isinstance(node, ast.comprehension):
        text += "".join(f" if {ast.unparse(test)}" for test in node.ifs)
    if isinstance(node, (ast.If, ast.While)):
        text = f"if {ast.unparse(node.test)}"
    return " ".join(text.split())[:150]


class _Source(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a mutated source."""

    def __init__(self, module, source):
        self.module, self.source = module, source

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def exec_module(self, module):
        module.__file__ = str(CORE / (self.module.replace(".", "/") + ".py"))
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)  # noqa: S102


def run_mutant(mutant, seeds):
    """Run a mutant in this process. Returns (verdict, reason)."""
    if mutant.function is None or not _replace_code(mutant):
        for name in [name for name in sys.modules if name.split(".")[0] in ("glassbox", "simulation")]:
            if name != __name__:
                del sys.modules[name]
        sys.meta_path.insert(0, _Source(mutant.module, mutant.source))
    try:
        from simulation.found import FOUND, RARE
        from simulation.run import run, run_seed

        for settings, schedule in [*FOUND.values(), *RARE.values()]:
            signal.setitimer(signal.ITIMER_VIRTUAL, SCHEDULE_SECONDS)
            run(schedule, settings)
        for seed in seeds:
            signal.setitimer(signal.ITIMER_VIRTUAL, SCHEDULE_SECONDS)
            _, failure = run_seed(seed)
            if failure:
                return KILLED, f"seed {seed}: {failure.kind}"
    except Exception as error:
        return KILLED, f"{type(error).__name__}: {str(error.__cause__ or error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return SURVIVED, ""


def _replace_code(mutant):
    """Give the function of a mutant its mutated code, in the loaded module; False where that is not possible."""
    module = sys.modules[mutant.module]
    namespace = dict(module.__dict__)
    if mutant.function in mutant.decorators:  # it has run when the module was imported
        return False
    try:
        exec(compile(mutant.source, str(module.__file__), "exec"), namespace)  # noqa: S102
    except Exception:
        return False
    old, new = _find(module.__dict__, mutant.function), _find(namespace, mutant.function)
    if old is None or new is None or not isinstance(getattr(old, "__code__", None), CodeType):
        return False
    if old.__code__.co_freevars != new.__code__.co_freevars:
        return False
    old.__code__ = new.__code__
    old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    return True


def _find(namespace, qualified):
    first, *rest = qualified.split(".")
    found = namespace.get(first)
    for name in rest:
        found = vars(found).get(name)
    if isinstance(found, property):
        found = found.fget
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found


def _forked(mutant, seeds):
    """Run a mutant in a process of its own; one that dies is killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        try:
            os.write(write, json.dumps(run_mutant(mutant, seeds)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return tuple(json.loads(answer)) if answer else (KILLED, "a schedule does not end")


def main():
    parser = argparse.ArgumentParser(prog="simulation.mutants")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--module", default="")
    parser.add_argument(
        "--results", default="out/mutants.jsonl", help="verdicts; those in it are not run again"
    )
    parser.add_argument("--again", action="store_true", help="run the survivors in --results again")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.module in mutant.module]
    if options.list:
        print("\n".join(mutant.key for mutant in chosen))
        return
    results = Path(options.results)
    results.parent.mkdir(exist_ok=True)
    done = {}
    if results.exists():
        done = {entry["key"]: entry for entry in map(json.loads, results.read_text().splitlines())}
    keep = {KILLED} if options.again else {KILLED, SURVIVED}
    left = [mutant for mutant in chosen if done.get(mutant.key, {}).get("verdict") not in keep]
    from simulation.run import run_seed

    for seed in range(5):  # everything is imported before the first fork
        run_seed(seed)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool, results.open("a") as file:
        for mutant, (verdict, reason) in pool.map(lambda m: (m, _forked(m, range(options.seeds))), left):
            entry = {"key": mutant.key, "verdict": verdict, "reason": reason}
            done[mutant.key] = entry
            file.write(json.dumps(entry) + "\n")
            file.flush()
    verdicts = [done[mutant.key]["verdict"] for mutant in chosen if mutant.key in done]
    for mutant in chosen:
        if done.get(mutant.key, {}).get("verdict") == SURVIVED:
            print(mutant.key)
    killed = verdicts.count(KILLED)
    print(
        f"{len(verdicts)} mutants, {killed} killed, {len(verdicts) - killed} survived, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
