"""How pages look, and the one script that sorts tables. Series colours: Okabe and Ito's, told apart by colour-blind
people; the dark ones are lighter tones of the same hues."""

from __future__ import annotations

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#8c6d31")
_DARK = ("#5aaee6", "#ff8b45", "#3fcf9f", "#e8a3cb", "#ffc04d", "#9ad8fa", "#b4b4b4", "#cbb27a")

STYLE = (
    ":root{color-scheme:light dark;"
    "--font:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif;"
    "--page:#fff;--card:#f7f8fa;--text:#1c2128;--soft:#57606a;--line:#d8dee4;--accent:#0072b2;--bad:#a8320a;"
    + "".join(f"--s{number}:{colour};" for number, colour in enumerate(SERIES))
    + "}@media screen and (prefers-color-scheme:dark){:root{--page:#14171b;--card:#1c2026;--text:#e6e9ed;"
    "--soft:#9aa4af;--line:#353c45;--accent:#5aaee6;--bad:#ff9d6b;"
    + "".join(f"--s{number}:{colour};" for number, colour in enumerate(_DARK))
    + """}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 var(--font)}
main{max-width:1200px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 12px}
h3{font-size:15px;margin:20px 0 8px}
p{margin:0 0 12px;max-width:80ch}
.lead{color:var(--soft);margin-bottom:20px}
.note{color:var(--soft);font-size:13px;margin:8px 0 0}
section{margin-top:40px;padding-top:20px;border-top:1px solid var(--line)}
.warning{border-left:4px solid var(--bad);background:var(--card);padding:10px 14px;margin:12px 0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:0 0 8px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:23px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span,.tile small{display:block;color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--soft);vertical-align:bottom}
th,td{padding:6px 14px 6px 0}
td{border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
td small{display:block;color:var(--soft);font-size:12px;white-space:nowrap}
.number{text-align:right;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
.js th{cursor:pointer}
th[aria-sort=ascending]::after{content:" \\2191"}
th[aria-sort=descending]::after{content:" \\2193"}
dl{display:grid;grid-template-columns:minmax(130px,max-content) 1fr;gap:5px 20px;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
figure{margin:12px 0 0}
figcaption{font-size:13px;margin-bottom:4px;overflow-wrap:anywhere}
figcaption small{display:block;color:var(--soft);font-size:12px}
svg{display:block;width:100%;height:auto}
.grid{display:grid;gap:24px 28px;grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}
.pair{display:grid;gap:24px 28px;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));align-items:start}
.gallery{display:grid;gap:16px;align-items:start;grid-template-columns:repeat(auto-fill,minmax(270px,1fr))}
.gallery figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px}
.views{display:grid;grid-template-columns:1fr 1fr;gap:4px;margin-bottom:6px}
.views img{width:100%;height:auto;display:block;border-radius:3px}
.badge{display:inline-block;border:1px solid;border-radius:4px;padding:0 6px;font-size:12px;font-weight:600}
.badge.bad{color:var(--bad)}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;font-size:13px;margin:0 0 10px;padding:0;list-style:none}
.legend i{display:inline-block;width:12px;height:12px;margin-right:6px;border-radius:2px;vertical-align:-1px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}
@media (max-width:640px){main{padding:20px 14px 40px}.pair,.grid{grid-template-columns:1fr}}
@media print{:root{color-scheme:light}body{font-size:11px}main{max-width:none;padding:0}
section{break-inside:auto;margin-top:22px}figure,tr,.tile{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}table{font-size:10px}th,td{padding-right:8px}}
"""
)

# Sorts by data-value where a cell has one, else by its text; the order of the page stands for those without script.
SCRIPT = """
document.documentElement.classList.add("js");
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const numbers = (a, b) => typeof a === "number" && typeof b === "number";
      const order = (a, b) => numbers(a, b) ? a - b : String(a).localeCompare(String(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""
