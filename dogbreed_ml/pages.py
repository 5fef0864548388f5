"""The looks that all our HTML pages share; each adds what is its own."""

from typing import Final

STYLE: Final = """\
:root { --accent: #2f6f8f; --ink: #1d2730; --soft: #5d6b76; --line: #e2e7eb; --paper: #fff; --back: #f5f7f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0; font-size: 26px; letter-spacing: -.01em; }
header p { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 22px; margin-top: 18px; }
h2 { margin: 0 0 6px; font-size: 17px; }
.caption, .none { margin: 0 0 8px; color: var(--soft); }
.plot, .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
a { color: var(--accent); }
"""
