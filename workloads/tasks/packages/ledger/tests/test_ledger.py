"""What money, journals and reports promise."""

import random
import unittest
from datetime import date, timedelta

from ledger import Entry, Journal, Money, Posting, UnbalancedError, split
from ledger.report import by_prefix, table


def entry(day, text, *lines):
    return Entry(day, text, tuple(Posting(name, Money.parse(amount)) for name, amount in lines))


class MoneyTest(unittest.TestCase):
    def test_parse_and_print(self):
        for text in ("0.00", "12.30", "-0.05", "7.00", "-100.99"):
            self.assertEqual(str(Money.parse(text)), text)
        self.assertEqual(Money.parse("7"), Money(700))
        self.assertEqual(Money.parse("1.5"), Money(150))

    def test_parse_refuses(self):
        for text in ("", "a", "1.234", "1.x", "1x"):
            with self.assertRaises(ValueError):
                Money.parse(text)

    def test_arithmetic(self):
        self.assertEqual(Money(5) + Money(7), Money(12))
        self.assertEqual(Money(5) - Money(7), Money(-2))
        self.assertEqual(-Money(5), Money(-5))

    def test_split_adds_up(self):
        for cents in (0, 1, 10, 101, 9999):
            for parts in (1, 2, 3, 7):
                shares = split(Money(cents), parts)
                self.assertEqual(len(shares), parts)
                self.assertEqual(sum(s.cents for s in shares), cents)
                self.assertLessEqual(max(shares).cents - min(shares).cents, 1)
        with self.assertRaises(ValueError):
            split(Money(1), 0)


class JournalTest(unittest.TestCase):
    def setUp(self):
        self.journal = Journal()
        start = date(2026, 1, 31)
        self.journal.add(entry(start, "wages", ("assets:bank", "2000"), ("income:job", "-2000")))
        self.journal.add(
            entry(date(2026, 1, 2), "rent", ("expenses:rent", "700.5"), ("assets:bank", "-700.50"))
        )
        self.journal.add(entry(start, "food", ("expenses:food", "9.99"), ("assets:cash", "-9.99")))

    def test_order(self):
        self.assertEqual([e.text for e in self.journal.entries], ["rent", "wages", "food"])

    def test_unbalanced(self):
        with self.assertRaises(UnbalancedError):
            self.journal.add(entry(date(2026, 1, 1), "x", ("a", "1"), ("b", "-1.01")))

    def test_between(self):
        found = self.journal.between(date(2026, 1, 2), date(2026, 1, 30))
        self.assertEqual([e.text for e in found], ["rent"])
        found = self.journal.between(date(2026, 1, 3), date(2026, 1, 31))
        self.assertEqual([e.text for e in found], ["wages", "food"])

    def test_balances(self):
        self.assertEqual(
            {name: str(amount) for name, amount in self.journal.balances().items()},
            {
                "assets:bank": "1299.50",
                "assets:cash": "-9.99",
                "expenses:food": "9.99",
                "expenses:rent": "700.50",
                "income:job": "-2000.00",
            },
        )
        early = self.journal.balances(date(2026, 1, 2))
        self.assertEqual(list(early), ["assets:bank", "expenses:rent"])

    def test_books_always_balance(self):
        draw = random.Random(7)
        journal = Journal()
        for number in range(300):
            cents = draw.randrange(-5000, 5000)
            day = date(2026, 1, 1) + timedelta(days=draw.randrange(60))
            posts = (Posting(f"a{draw.randrange(5)}", Money(cents)), Posting("b", Money(-cents)))
            journal.add(Entry(day, str(number), posts))
        days = [e.day for e in journal.entries]
        self.assertEqual(days, sorted(days))
        self.assertEqual(sum(m.cents for m in journal.balances().values()), 0)


class ReportTest(unittest.TestCase):
    def test_groups(self):
        balances = {"a:x": Money(1), "a:y": Money(2), "b": Money(4)}
        self.assertEqual(by_prefix(balances), {"a": Money(3), "b": Money(4)})
        self.assertEqual(by_prefix(balances, 2), balances)

    def test_table(self):
        text = table({"bank": Money(123456), "cash": Money(-5)})
        self.assertEqual(text, "bank  1234.56\ncash    -0.05")
        self.assertEqual(table({}), "(empty)")


if __name__ == "__main__":
    unittest.main()
