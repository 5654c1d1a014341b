"""
Every key, once. All carry one hash tag, so that a cluster keeps a namespace in one slot.

| key        | type   | holds                                                     | lives            |
|------------|--------|-----------------------------------------------------------|------------------|
| meta       | hash   | epoch, seq, admitted, done, kept, bytes, fence, paused,     | for ever       |
|            |        | pin, held                                                 |                |
| log        | stream | entries; the id of an entry is its dense number `seq-0`   | until trimmed    |
| ids        | hash   | id → `seq:digest` of its body, or `seq:kind digest`       | `id_window`      |
| id-order   | stream | ids in order of seq, so that the window is cut by count   | `id_window`      |
| labels     | set    | every class name that was accepted                        | for ever         |
| waiting    | hash   | tenant → its entries that are not learnt yet              | while they wait  |
| lease      | string | who learns; expires                                       | seconds          |
| head       | string | `version digest` of the current manifest                  | for ever         |
| manifest:N | string | the manifest of version N                                 | while kept       |
| manifests  | zset   | the versions whose manifest is stored                     | while kept       |
| part:D     | string | the part whose SHA-256 is D                               | while referenced |
| lineage    | hash   | version → one line about it                               | the last 10,000  |
| learned    | zset   | version by the last seq that it has learnt                | the last 10,000  |
| dead       | hash   | seq → why that sample was not learnt                      | `id_window`      |
| forgotten  | hash   | seq → the first version that is without that sample       | `id_window`    |
| reports    | hash   | seq of a forgetting → what it did, as JSON                | `id_window`    |
| learner    | hash   | the learner's own report, for people                      | overwritten      |

And channels, of which nothing is kept:

| channel    | says                                                                          |
|------------|-------------------------------------------------------------------------------|
| head       | that the head moved                                                           |
| questions  | what a service asks the learner about its replay buffer                       |
| answer:T   | what it answers to the question with token T                                  |
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys of one namespace."""

    namespace: str

    def _key(self, name: str) -> str:
        return f"{{{self.namespace}}}:{name}"

    @property
    def meta(self) -> str:
        return self._key("meta")

    @property
    def log(self) -> str:
        return self._key("log")

    @property
    def ids(self) -> str:
        return self._key("ids")

    @property
    def id_order(self) -> str:
        return self._key("id-order")

    @property
    def labels(self) -> str:
        return self._key("labels")

    @property
    def waiting(self) -> str:
        return self._key("waiting")

    @property
    def lease(self) -> str:
        return self._key("lease")

    @property
    def head(self) -> str:
        return self._key("head")

    @property
    def manifests(self) -> str:
        return self._key("manifests")

    @property
    def lineage(self) -> str:
        return self._key("lineage")

    @property
    def learned(self) -> str:
        return self._key("learned")

    @property
    def dead(self) -> str:
        return self._key("dead")

    @property
    def forgotten(self) -> str:
        return self._key("forgotten")

    @property
    def reports(self) -> str:
        return self._key("reports")

    @property
    def learner(self) -> str:
        return self._key("learner")

    @property
    def questions(self) -> str:
        return self._key("questions")

    def answer(self, token: str) -> str:
        return self._key(f"answer:{token}")

    def manifest(self, version: int) -> str:
        return self._key(f"manifest:{version}")

    def part(self, digest: str) -> str:
        return self._key(f"part:{digest}")
