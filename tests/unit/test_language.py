"""The language of the repository: plain technical English, one word per concept, short sentences.

Identifiers are checked too: ``is_told`` and ``IsTold`` are read as "is told".
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What to write instead. A space in a pattern also matches a line break with the comment mark that follows it.
BANNED = {
    r"whoever|whichever|whosoever": "name the actor",
    r"somebody|nobody|anybody": "name the actor, or use the passive voice",
    r"whatever": "name what you mean, or write 'any'",
    r"besides": "and, also",
    r"none that|is no": "write the negation at the verb: 'is not a …'",
    r"goes (along|on)|going on|went on": "continues",
    r"com(e|es|ing) (round|again|by itself)|came (round|again)": "is repeated, runs every …",
    r"tells?|told|telling": "notify, report, show, distinguish",
    r"says?|said|saying": "a file contains, an error names, a message reports",
    r"knows?|knew|known to": "only people know: has, depends on, imports, accepts",
    r"lies?|lying|lay": "is, is stored",
    r"judge|judges|judged|judging|judgement": "check, evaluate",
    r"roads?": "path, source",
    r"desks?": "dependencies",
    r"doors?": "entry point",
    r"(head|leg)?rooms?": "package, space",
    r"at hand|in hand|hands?|handed|handing": "available; pass, give",
    r"as it (is|was)": "unchanged, the original",
    r"what it (is|was)|what there is": "name it",
    r"overtaken|overtakes?": "a concurrent update",
    r"obeys?|obeyed|obeying": "apply, follow",
    r"(has|have) got": "has",
    r"deaf": "violations_paused",
    r"faithful|faithfully|faithfulness|unfaithful": "complete",
    r"pictures?": "input image, heat map",
    r"same matter": "is_duplicate_of",
    r"has seen|looking again": "see the table of names",
    r"centuries": "invalid ISO 8601 timestamp",
    r"good time": "reference period",
}
# The names of the traffic signs, and one standard phrase.
ALLOWED = re.compile(r"(Priority|Bumpy|Slippery) road|Road (narrows|work)|by hand", re.IGNORECASE)

# Each word of a pattern stands alone; identifiers are split before.
PATTERNS = {
    re.compile(rf"\b(?:{words})\b".replace(" ", r"[\s#>|]+"), re.IGNORECASE): advice
    for words, advice in BANNED.items()
}

# the list itself, and a text of others
EXEMPT = {"tests/unit/test_language.py", "LICENSE"}


def tracked():
    """Return the paths of all tracked text files, relative to the repository's root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [path for path in listed.decode().split("\0") if path and (ROOT / path).is_file()]
    return [path for path in paths if b"\0" not in (ROOT / path).read_bytes()]


TRACKED = tracked()


def banned_words(text):
    """Return (line number, words, advice) for each banned word of a text."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text)
    spaced = ALLOWED.sub(lambda match: re.sub(r"\S", "-", match.group()), spaced)
    found = [
        (spaced.count("\n", 0, match.start()) + 1, " ".join(match.group().split()), advice)
        for pattern, advice in PATTERNS.items()
        for match in pattern.finditer(spaced)
    ]
    return sorted(found)


def bad_summary(node):
    """Return what is wrong with a function's docstring summary, or None."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return None
    summary, _, rest = docstring.partition("\n\n")
    if "\n" in summary or len(summary) >= 90:
        return "longer than one line of 89 characters"
    if not summary.endswith(".") or re.search(r"[.;:] \w", summary):
        return "not one sentence with a full stop"
    if rest.startswith("\n"):
        return "more than one empty line after the summary"
    first = summary.split()[0]
    if is_plain_function(node) and (re.search(r"[^s]s$", first) or not re.match(r"[A-Z][a-z-]*$", first)):
        return f"{first!r} is not an imperative verb"
    return None


def is_plain_function(node):
    """Properties, fixtures and classes are named by nouns."""
    if isinstance(node, ast.ClassDef):
        return False
    return not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def public(tree):
    """Return the public functions and classes of a module, methods included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def bad_lines(page):
    """Return (line number, what is wrong) for each long line or sentence of a Markdown page.

    Tables are exempt, and so are code blocks, which contain commands and their output.
    """
    found, paragraph, start, in_code = [], [], 1, False

    def close():
        text = re.sub(r"`[^`]*`", "code", " ".join(paragraph))
        for sentence in re.split(r"(?<=[.!?:])\s+", text):
            words = re.findall(r"\w[\w'’-]*", re.sub(r"\]\([^)]*\)", "]", sentence))
            if len(words) > 25:
                found.append((start, f"{len(words)} words: {sentence[:60]}…"))
        paragraph.clear()

    for number, line in enumerate([*page.splitlines(), ""], start=1):
        if line.startswith("```"):
            in_code = not in_code
        is_table = line.lstrip().startswith("|")
        if len(line) > 100 and not (is_table or in_code or re.search(r"https?://", line)):
            found.append((number, f"{len(line)} characters"))
        if in_code or is_table or not line.strip() or re.match(r"\s*([-*] |#|>|\d+\. )", line):
            close()
        if not (in_code or is_table or line.startswith(("#", "```"))) and line.strip():
            if not paragraph:
                start = number
            paragraph.append(line.strip())
    return sorted(found)


def report(problems):
    return "\n" + "\n".join(problems)


def test_the_words_are_those_of_the_field():
    assert {"README.md", "template.yaml", "tests/unit/test_language.py"} <= set(TRACKED)
    problems = [
        f"{file}:{line}: {words!r}: {advice}"
        for file in TRACKED
        if file not in EXEMPT
        for line, words, advice in banned_words((ROOT / file).read_text(encoding="utf-8"))
    ]
    assert not problems, report(problems)


def test_docstring_summaries_are_one_short_imperative_sentence():
    problems = [
        f"{file}:{node.lineno}: {node.name}: {problem}"
        for file in TRACKED
        if file.endswith(".py") and not file.startswith("tests/")
        for node in public(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if (problem := bad_summary(node))
    ]
    assert not problems, report(problems)


def test_lines_and_sentences_of_the_pages_are_short():
    problems = [
        f"{file}:{line}: {problem}"
        for file in TRACKED
        if file.endswith(".md")
        for line, problem in bad_lines((ROOT / file).read_text(encoding="utf-8"))
    ]
    assert not problems, report(problems)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("whoever deploys", "the owner who deploys"),
        ("somebody else", "another function"),
        ("whatever it is", "what the endpoint runs"),
        ("and besides", "beside model.pt"),
        ("that is no time", "that is not a timestamp"),
        ("none\n    # that fits", "none of that"),
        ("it goes on", "it goes only"),
        ("they come again", "they become"),
        ("is_told", "is_stolen"),
        ("IsTold", "Istold"),
        ("the file says", "the essays"),
        ("it knows AWS", "known sizes"),
        ("it lies in X", "it applies to X"),
        ("is judged", "adjudged"),
        ("roads", "roadmap; Slippery road"),
        ("at_desk", "desktop"),
        ("two doors", "indoors"),
        ("rooms", "mushrooms"),
        ("at hand", "handler, handle, handwritten"),
        ("as it was", "as items"),
        ("overtaken", "took"),
        ("obey(incident)", "apply_command(incident)"),
        ("has got", "hash got"),
        ("deaf", "default"),
        ("unfaithful", "complete"),
        ("UnfaithfulPictures", "IncompleteExplanations"),
        ("same_matter", "is_duplicate_of"),
        ("centuries", "timestamp outside 2000 to 2199"),
    ],
)
def test_banned_words_are_found_and_their_near_misses_are_not(bad, good):
    assert banned_words(f"first line\n{bad}")[0][0] == 2
    assert not banned_words(good)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ('def f(): "Return the sum."', None),
        ('def f(): "Process one file."', None),
        ("def f(): pass", None),
        ('@property\ndef f(): "The sum."', None),
        ('class C: "A sum."', None),
        ('def f(): "Returns the sum."', "imperative"),
        ('def f(): "`x` times two."', "imperative"),
        ('def f(): "Return the sum"', "full stop"),
        ('def f(): "Return the sum. Then stop."', "full stop"),
        ('def f(): "Return the sum; then stop."', "full stop"),
        (f'def f(): "Return {"the sum " * 12}of it."', "89"),
        ('def f():\n  """Return the sum of\n  it."""', "89"),
    ],
)
def test_summaries_are_checked(function, problem):
    found = bad_summary(ast.parse(function).body[0])
    assert found is None if problem is None else problem in found


def test_private_functions_are_not_checked_and_methods_are():
    tree = ast.parse("def _a(): pass\nclass B:\n  def c(self): pass\n  def _d(self): pass\ndef e(): pass")
    assert [node.name for node in public(tree)] == ["B", "c", "e"]


WORDS_12 = "word " * 11 + "word\n"
WORDS_13 = "word " * 12 + "word\n"


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        (WORDS_13 + WORDS_12, []),
        (WORDS_13 + WORDS_13, [1]),
        (WORDS_13 + "end.\n" + WORDS_13, []),
        ("- " + WORDS_13 + "- " + WORDS_13, []),
        ("# Title\n\n" + WORDS_13 + WORDS_13, [3]),
        ("| " + "word " * 40 + "|\n", []),
        ("```\n" + WORDS_13 * 3 + "```\n", []),
        ("```\n" + "x" * 101 + "\n```\n" + "x" * 101 + "\n", [4]),
        ("`" + WORDS_13 * 3 + "`\n", []),
        ("See\n[" + "word " * 3 + "](" + "x/" * 30 + ").\n", []),
        ("x" * 101 + "\n", [1]),
        ("x" * 100 + "\n", []),
    ],
)
def test_long_lines_and_sentences_are_found(page, lines):
    assert [line for line, _ in bad_lines(page)] == lines
