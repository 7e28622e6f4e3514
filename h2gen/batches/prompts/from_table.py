"""Prompt files as tables: CSV and TSV with a header."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

from h2gen.batches.prompts.entries import KEYS, Reading, first_line
from h2gen.batches.prompts.from_text import parsed
from h2gen.errors import SettingError
from h2gen.settings.synonyms import meant
from h2gen.wording import printable


def read_table(reading: Reading, name: str, data: bytes, key: str, separator: str | None = None) -> None:
    """Add the entry of each row.

    Args:
        reading: takes the entries and the errors.
        name: of the file, for messages.
        data: UTF-8 text.
        key: the column of the prompt.
        separator: of the columns; None takes the one that the header has.

    Raises:
        SettingError: the file as a whole cannot be used.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingError(f"{name}:{line}: it is not UTF-8 text; save the file as UTF-8.") from error
    if separator is None:
        header = text.lstrip().partition("\n")[0]
        separator = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: list[str] = []
    kept: set[str] = set()
    line = 1
    try:
        for row in rows:
            source, line = f"{name}:{line}", rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = [cell.strip() for cell in row]
                kept = _checked_columns(reading, source, columns, key)
            elif len(row) > len(columns):
                reading.wrong(f"{source}: it has more cells than the header; quote text that contains {separator!r}.")
            else:
                cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False) if column in kept}
                reading.add_item(source, _values(reading, source, cells, key), key)
    except csv.Error as error:
        raise SettingError(f"{name}:{line}: it is not valid CSV: {first_line(error)}.") from error


def _checked_columns(reading: Reading, source: str, columns: list[str], key: str) -> set[str]:
    """The columns that are read; errors are noted for the others.

    Raises:
        SettingError: there is no column for the prompt.
    """
    if key not in columns:
        other = next((column for column in columns if meant(column) == "prompt"), None)
        hint = f"give --prompt-key {other} if that is {other!r}" if other else "the first line names the columns"
        raise SettingError(f"{source}: there is no column {printable(key)!r}; {printable(hint)}.")
    for column, count in Counter(columns).items():
        if count > 1 and column:
            reading.wrong(f"{source}: there are {count} columns called {printable(column)!r}; keep one.")
    return {column for column in columns if column and (column == key or reading.check_key(source, column))}


def _values(reading: Reading, source: str, cells: dict[str, str], key: str) -> dict[str, Any]:
    """The cells of a row that are not empty, those of settings as their values."""
    values: dict[str, Any] = {}
    for column, cell in cells.items():
        try:
            if column == key or cell:
                values[column] = parsed(column, cell, column) if column in KEYS and column != key else cell
        except SettingError as error:
            reading.wrong(f"{source}: {error}")
    return values
