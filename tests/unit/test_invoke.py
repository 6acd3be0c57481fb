"""What `make invoke-…` prints of the stack's contents."""

from types import SimpleNamespace

from local import invoke

COUNTS = {"pk": {"S": "traffic-signs/AllTraffic#0"}, "files": {"BS": [b"\x0f\x1e"]}, "c14": {"N": "50"}}


class FakeStack:
    """A stack whose bucket has one object and whose tables have one item each."""

    def __init__(self):
        self.outputs = {"Bucket": "bucket", "CountsTable": "counts", "IncidentsTable": "incidents"}
        items = {"counts": [COUNTS], "incidents": [{"pk": {"S": "traffic-signs"}}]}
        pages = SimpleNamespace(paginate=lambda Bucket: [{"Contents": [{"Key": "capture/1.jsonl"}]}])
        self._clients = {
            "s3": SimpleNamespace(get_paginator=lambda operation: pages),
            "dynamodb": SimpleNamespace(scan=lambda TableName: {"Items": items[TableName]}),
        }

    def client(self, service):
        return self._clients[service]


def test_lists_objects_and_items_with_binary_values():
    assert invoke.contents(FakeStack()) == {
        "s3://bucket/capture/1.jsonl",
        'CountsTable {"c14": {"N": "50"}, "files": {"BS": ["0f1e"]}, "pk": {"S": "traffic-signs/AllTraffic#0"}}',
        'IncidentsTable {"pk": {"S": "traffic-signs"}}',
    }
