"""``python -m tests.reliability``: write the tables of docs/reliability.md from the rows and the tests."""

from tests.reliability.table import PAGE, write

if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
