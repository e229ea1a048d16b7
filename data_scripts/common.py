"""What the scripts share: say how a dataset is had, and let the layout doctor look at the copy."""
import argparse
import sys

from kdda.data.datasets import check


def main(layout, steps):
    "`--root ROOT`: prints the steps if the data is not there or not whole; exit code 0 if it is."
    parser = argparse.ArgumentParser(description=f"How to get {layout.name}, and whether a copy of it is whole.")
    parser.add_argument("--root", default=f"data/{layout.name}", help="where it is or shall be (default: %(default)s)")
    root = parser.parse_args().root
    report = check(layout, root)
    if not report.ok:
        print(f"How to get {layout.name}\n  from      {layout.address}\n  licence   {layout.licence}")
        print(steps.strip("\n").format(root=root), end="\n\n")
    print(report)
    sys.exit(not report.ok)
