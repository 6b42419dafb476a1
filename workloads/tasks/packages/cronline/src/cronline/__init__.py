"""Lines of a crontab, and when they are due."""

from cronline.fields import FieldError, parse_field
from cronline.schedule import Schedule

__all__ = ["FieldError", "Schedule", "parse_field"]
