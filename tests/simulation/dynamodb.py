"""A DynamoDB in memory: the conditions, updates and limits that the adapters rely on.

An item is a dict that is replaced and never changed, so a copy of a table is a copy of two levels of dicts. A form of
request that the adapters do not use raises NotImplementedError: the simulation must not guess.
"""

import functools
import re

from botocore.exceptions import ClientError, ParamValidationError

ITEM_BYTES = 400 * 1024
PAGE_BYTES = 1 << 20
TYPES = ("S", "N", "B", "SS", "NS", "BS", "M", "L", "NULL", "BOOL")
EXPRESSION_BYTES, OPERANDS = 4096, 300

_TOKENS = re.compile(r"\s*(<=|>=|<>|[(),=<>]|[#:]?[A-Za-z_0-9.]+)")


def refused(code, message, operation):
    """Return the error that botocore raises for an answer of AWS."""
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


class Tables:
    """``tables`` maps a name to {pk: {sk: item}}; ``before`` maps (name, pk, sk) to the item before its last write.

    Args:
        on_write: is called with (table, key, before, after) for each write that took effect.
    """

    def __init__(self, on_write=None):
        self.tables, self.before = {}, {}
        self.stale_reads, self.page_bytes = False, PAGE_BYTES
        self.on_write = on_write

    def snapshot(self):
        tables = {name: {pk: dict(rows) for pk, rows in table.items()} for name, table in self.tables.items()}
        return tables, dict(self.before)

    def restore(self, snapshot):
        tables, before = snapshot
        self.tables = {name: {pk: dict(rows) for pk, rows in table.items()} for name, table in tables.items()}
        self.before = dict(before)

    # ------------------------------------------------------------------ operations of the client

    def create_table(self, TableName, **_):
        self.tables[TableName] = {}
        return {}

    def delete_table(self, TableName):
        del self.tables[TableName]
        return {}

    def scan(self, TableName):
        return {
            "Items": [item for _, rows in sorted(self.tables[TableName].items()) for item in rows.values()]
        }

    def get_item(self, TableName, Key, ConsistentRead=False):
        pk, sk = _key(Key)
        item = self._table(TableName, "GetItem").get(pk, {}).get(sk)
        if not ConsistentRead and self.stale_reads:
            item = self.before.get((TableName, pk, sk), item)
        return {} if item is None else {"Item": item}

    def put_item(
        self,
        TableName,
        Item,
        ConditionExpression=None,
        ExpressionAttributeNames=None,
        ExpressionAttributeValues=None,
    ):
        before = self._item(TableName, Item, "PutItem")
        names, values = ExpressionAttributeNames or {}, ExpressionAttributeValues or {}
        self._check(ConditionExpression, "", names, values, before, "PutItem")
        _refuse_empty_sets(Item, "PutItem")
        if size(Item) > ITEM_BYTES:
            raise refused("ValidationException", "Item size has exceeded the maximum allowed size", "PutItem")
        self._write(TableName, Item, before, {name: _sorted(value) for name, value in Item.items()})
        return {}

    def update_item(
        self,
        TableName,
        Key,
        UpdateExpression,
        ConditionExpression=None,
        ExpressionAttributeNames=None,
        ExpressionAttributeValues=None,
    ):
        before = self._item(TableName, Key, "UpdateItem")
        names, values = ExpressionAttributeNames or {}, ExpressionAttributeValues or {}
        self._check(ConditionExpression, UpdateExpression, names, values, before, "UpdateItem")
        after = dict(before or Key)
        for action, path, operand in _parsed_update(UpdateExpression):
            name, value = names.get(path, path), values[operand]
            _refuse_empty_sets({name: value}, "UpdateItem")
            after[name] = _sorted(value) if action == "SET" else _added(after.get(name), value)
        if size(after) > ITEM_BYTES:
            raise refused(
                "ValidationException",
                "Item size to update has exceeded the maximum allowed size",
                "UpdateItem",
            )
        self._write(TableName, Key, before, after)
        return {}

    def query(
        self,
        TableName,
        KeyConditionExpression,
        ExpressionAttributeValues,
        ConsistentRead=False,
        ExclusiveStartKey=None,
        Limit=None,
        ScanIndexForward=True,
    ):
        match = re.fullmatch(r"pk = (:\w+) AND sk BETWEEN (:\w+) AND (:\w+)", KeyConditionExpression)
        if match is None:
            raise NotImplementedError(KeyConditionExpression)
        pk, first, last = (ExpressionAttributeValues[name]["S"] for name in match.groups())
        if first > last:
            raise refused(
                "ValidationException",
                "Invalid KeyConditionExpression: The BETWEEN operator requires upper bound to be greater than or "
                "equal to lower bound",
                "Query",
            )
        rows = self._table(TableName, "Query").get(pk, {})
        selected = sorted((sk for sk in rows if first <= sk <= last), reverse=not ScanIndexForward)
        if ExclusiveStartKey:
            after = ExclusiveStartKey["sk"]["S"]
            selected = [sk for sk in selected if (sk > after if ScanIndexForward else sk < after)]
        found, held = [], 0
        for sk in selected:
            if found and (held >= self.page_bytes or len(found) == Limit):
                last_key = {name: found[-1][name] for name in ("pk", "sk")}
                return {"Items": found, "LastEvaluatedKey": last_key}
            item = rows[sk]
            if not ConsistentRead and self.stale_reads:
                item = self.before.get((TableName, pk, sk), item)
            if item is not None:
                found.append(item)
                held += size(item)
        return {"Items": found}

    # ------------------------------------------------------------------

    def _table(self, name, operation):
        if name not in self.tables:
            raise refused("ResourceNotFoundException", "Requested resource not found", operation)
        return self.tables[name]

    def _item(self, table, key, operation):
        pk, sk = _key(key)
        return self._table(table, operation).get(pk, {}).get(sk)

    def _write(self, table, key, before, after):
        pk, sk = _key(key)
        self.tables[table].setdefault(pk, {})[sk] = after
        self.before[table, pk, sk] = before
        if self.on_write:
            self.on_write(table, (pk, sk), before, after)

    def _check(self, condition, update, names, values, item, operation):
        """Refuse what DynamoDB refuses, then the item that does not meet the condition."""
        used = _used(condition or "", update)
        for value in values.values():
            _sorted(value)
        for kind, given in (("Names", names), ("Values", values)):
            unused = set(given) - used
            if unused:
                raise refused(
                    "ValidationException",
                    f"Value provided in ExpressionAttribute{kind} unused in expressions: keys: {sorted(unused)}",
                    operation,
                )
        if len(update.encode()) > EXPRESSION_BYTES or len(condition or "") > EXPRESSION_BYTES:
            raise refused(
                "ValidationException", "Expression size has exceeded the maximum allowed size", operation
            )
        if condition and not _parsed_condition(condition)(item or {}, names, values):
            raise refused("ConditionalCheckFailedException", "The conditional request failed", operation)


def size(item):
    """Return the bytes of an item, as DynamoDB counts them."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value):
    ((kind, held),) = value.items()
    if kind in ("S", "N"):
        return len(held.encode())
    if kind == "B":
        return len(held)
    if kind in ("SS", "NS", "BS"):
        return sum(len(one) if isinstance(one, bytes) else len(one.encode()) for one in held)
    if kind == "L":
        return 3 + sum(1 + _value_size(one) for one in held)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + _value_size(one) for name, one in held.items())
    return 1


def _sorted(value):
    ((kind, held),) = value.items()
    if kind not in TYPES:
        raise ParamValidationError(report=f"Unknown parameter in input: {kind!r}, must be one of: {TYPES}")
    return {kind: sorted(held)} if kind in ("SS", "BS") else value


def _key(key):
    return key["pk"]["S"], key["sk"]["S"]


def _refuse_empty_sets(values, operation):
    for value in values.values():
        ((kind, held),) = value.items()
        if kind in ("SS", "NS", "BS") and not held:
            raise refused(
                "ValidationException",
                "One or more parameter values were invalid: An string set  may not be empty",
                operation,
            )


def _added(old, new):
    ((kind, held),) = new.items()
    if kind == "N":
        return {"N": str(int(old["N"] if old else 0) + int(held))}
    if kind not in ("SS", "BS"):
        raise NotImplementedError(f"ADD of {kind}")
    return {kind: sorted({*(old[kind] if old else ()), *held})}


@functools.cache
def _used(condition, update):
    found = frozenset(re.findall(r"[#:]\w+", f"{condition} {update}"))
    _refuse_reserved_words(f"{condition} {update}")
    return found


def _refuse_reserved_words(expression):
    from moto.dynamodb.parsing.reserved_keywords import ReservedKeywords

    bare = {word.upper() for word in re.findall(r"(?<![#:\w])[A-Za-z_]\w*", expression)}
    syntax = {"SET", "ADD", "REMOVE", "DELETE", "AND", "OR", "NOT", "BETWEEN", "IN", "SIZE", "CONTAINS"}
    reserved = (bare - syntax) & set(ReservedKeywords.get_reserved_keywords())
    if reserved:
        raise refused(
            "ValidationException",
            f"Invalid expression: Attribute name is a reserved keyword; reserved keyword: {sorted(reserved)}",
            "UpdateItem",
        )


@functools.lru_cache(maxsize=4096)
def _parsed_update(expression):
    """Return (action, path, operand) for each clause of ``SET #a = :a, … ADD #b :b, …``."""
    clauses, action = [], None
    parts = re.split(r"\s*\b(SET|ADD|REMOVE|DELETE)\b\s*|\s*,\s*", expression)
    for part in filter(None, parts):
        if part in ("SET", "ADD"):
            action = part
            continue
        match = re.fullmatch(r"([#\w]+) (?:= )?(:\w+)", part)
        if match is None or action is None:
            raise refused(
                "ValidationException", f"Invalid UpdateExpression: Syntax error: {part}", "UpdateItem"
            )
        clauses.append((action, *match.groups()))
    if not clauses:
        raise refused("ValidationException", "Invalid UpdateExpression: Syntax error", "UpdateItem")
    return clauses


@functools.lru_cache(maxsize=4096)
def _parsed_condition(expression):
    """Return a function of (item, names, values) for a ConditionExpression."""
    tokens = _TOKENS.findall(expression)
    parsed = _parse_or(tokens)
    if tokens:
        raise NotImplementedError(f"{expression}: {tokens}")
    return parsed


def _parse_or(tokens):
    terms = [_parse_and(tokens)]
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        terms.append(_parse_and(tokens))
    return lambda *given: any(term(*given) for term in terms)


def _parse_and(tokens):
    terms = [_parse_not(tokens)]
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        terms.append(_parse_not(tokens))
    return lambda *given: all(term(*given) for term in terms)


def _parse_not(tokens):
    if tokens[0] == "NOT":
        tokens.pop(0)
        negated = _parse_not(tokens)
        return lambda *given: not negated(*given)
    if tokens[0] == "(":
        tokens.pop(0)
        inner = _parse_or(tokens)
        _expect(tokens, ")")
        return inner
    return _parse_comparison(tokens)


def _parse_comparison(tokens):
    name = tokens[0]
    if name in ("attribute_not_exists", "attribute_exists", "contains"):
        return _parse_function(tokens)
    left, operator, right = _parse_operand(tokens), tokens.pop(0), _parse_operand(tokens)
    compare = {
        "=": lambda a, b: a == b,
        "<>": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }[operator]

    def holds(item, names, values):
        a, b = left(item, names, values), right(item, names, values)
        if operator == "<>":
            return a != b
        return a is not None and b is not None and type(a) is type(b) and compare(a, b)

    return holds


def _parse_function(tokens):
    function = tokens.pop(0)
    _expect(tokens, "(")
    path = tokens.pop(0)
    if function != "contains":
        _expect(tokens, ")")
        wanted = function == "attribute_exists"
        return lambda item, names, values: (names.get(path, path) in item) is wanted
    _expect(tokens, ",")
    operand = _parse_operand(tokens)
    _expect(tokens, ")")

    def contains(item, names, values):
        held = item.get(names.get(path, path))
        return held is not None and operand(item, names, values) in next(iter(held.values()))

    return contains


def _parse_operand(tokens):
    token = tokens.pop(0)
    if token == "size":
        _expect(tokens, "(")
        path = tokens.pop(0)
        _expect(tokens, ")")
        return lambda item, names, values: _size_of(item.get(names.get(path, path)))
    if token.startswith(":"):
        return lambda item, names, values: _plain(values[token])
    return lambda item, names, values: _plain(item.get(names.get(token, token)))


def _size_of(value):
    return None if value is None else float(len(next(iter(value.values()))))


def _plain(value):
    if value is None:
        return None
    ((kind, held),) = value.items()
    return float(held) if kind == "N" else held


def _expect(tokens, token):
    found = tokens.pop(0)
    if found != token:
        raise NotImplementedError(f"expected {token}, got {found}")
