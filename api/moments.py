"""Points in time in requests: RFC 3339 with an offset, taken as UTC, within the years that can be stored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from marshmallow import ValidationError, fields


class Moment(fields.AwareDateTime):
    """A date and time with its offset from UTC; PostgreSQL takes only offsets below 16 hours, so it gets none."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        parsed = super()._deserialize(value, attr, data, **kwargs)
        try:
            return parsed.astimezone(UTC)
        except (OverflowError, ValueError) as error:
            raise ValidationError("Outside the years 1 to 9999.") from error
