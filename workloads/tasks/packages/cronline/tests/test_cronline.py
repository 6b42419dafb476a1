"""What fields and schedules promise."""

import unittest
from datetime import datetime, timedelta

from cronline import FieldError, Schedule, parse_field
from cronline.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY


class FieldTest(unittest.TestCase):
    def test_numbers(self):
        self.assertEqual(parse_field("*", HOUR), set(range(24)))
        self.assertEqual(parse_field("1-3,7", DAY), {1, 2, 3, 7})
        self.assertEqual(parse_field("*/15", MINUTE), {0, 15, 30, 45})
        self.assertEqual(parse_field("50/4", MINUTE), {50, 54, 58})
        self.assertEqual(parse_field("10-20/5", MINUTE), {10, 15, 20})

    def test_words(self):
        self.assertEqual(parse_field("mon-fri", WEEKDAY), {1, 2, 3, 4, 5})
        self.assertEqual(parse_field("jan,DEC", MONTH), {1, 12})

    def test_refused(self):
        for text, within in (("60", MINUTE), ("0", DAY), ("5-3", HOUR), ("x", HOUR), ("*/0", HOUR)):
            with self.assertRaises(FieldError):
                parse_field(text, within)


class ScheduleTest(unittest.TestCase):
    def due(self, line, start, count=3):
        moments = Schedule.parse(line).upcoming(datetime.fromisoformat(start), count)
        return [moment.isoformat(" ", "minutes") for moment in moments]

    def test_every_quarter(self):
        self.assertEqual(
            self.due("*/15 9 * * *", "2026-03-01 09:20"),
            ["2026-03-01 09:30", "2026-03-01 09:45", "2026-03-02 09:00"],
        )

    def test_never_now(self):
        self.assertEqual(self.due("0 0 * * *", "2026-01-01 00:00", 1), ["2026-01-02 00:00"])

    def test_weekdays(self):
        self.assertEqual(
            self.due("0 8 * * mon-fri", "2026-11-20 08:00"),
            ["2026-11-23 08:00", "2026-11-24 08:00", "2026-11-25 08:00"],
        )

    def test_sunday(self):
        self.assertEqual(self.due("0 0 * * 0", "2026-11-20 00:00", 1), ["2026-11-22 00:00"])

    def test_day_or_weekday(self):
        self.assertEqual(
            self.due("0 0 13 * fri", "2026-11-01 00:00", 4),
            ["2026-11-06 00:00", "2026-11-13 00:00", "2026-11-20 00:00", "2026-11-27 00:00"],
        )
        self.assertEqual(self.due("0 0 11 * sat", "2026-11-08 00:00", 1), ["2026-11-11 00:00"])

    def test_leap_day(self):
        self.assertEqual(
            self.due("30 12 29 feb *", "2026-01-01 00:00", 2),
            ["2028-02-29 12:30", "2032-02-29 12:30"],
        )

    def test_never(self):
        self.assertEqual(self.due("0 0 31 feb *", "2026-01-01 00:00"), [])

    def test_fields(self):
        with self.assertRaises(FieldError):
            Schedule.parse("* * * *")

    def test_against_every_minute(self):
        schedule = Schedule.parse("7,37 6-8 1-7 * 2")
        at = start = datetime(2026, 2, 25)
        slow = []
        while len(slow) < 20:
            at += timedelta(minutes=1)
            fits = at.minute in (7, 37) and at.hour in (6, 7, 8)
            if fits and (at.day <= 7 or at.isoweekday() == 2):
                slow.append(at)
        self.assertEqual(schedule.upcoming(start, 20), slow)


if __name__ == "__main__":
    unittest.main()
