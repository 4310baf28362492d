#!/bin/sh
# Draws docs/under-flood.svg from the medians of the end-to-end run in docs/performance.md: `docs/plot.sh >docs/under-flood.svg`.
# A row there has five pairs (best, median) and, behind all but the first, a ratio; the order of the candidates is
# bypass, cookies, cache, bridge, nftables.
cd "$(dirname "$0")" || exit
awk '
function row(name, into,    rest, n, words, i, at) {
    rest = substr($0, index($0, name) + length(name))
    gsub(/[0-9.]+x/, "", rest)
    n = split(rest, words, " ")
    for (i = 1; i <= 5; i++) median[into, i] = words[2 * i]
}
function log10(x) { return log(x) / log(10) }
# One connection a second is the base line; less is drawn as a sliver.
function top(value) { return value <= 1 ? 1.5 : log10(value) * 56 }
index($0, "in peace: proved, connections a second") == 1    { row("a second", 1) }
index($0, "under 0.5 Mpps: proved, connections a second") == 1 { row("a second", 2) }
index($0, "under 1 Mpps: proved, connections a second") == 1   { row("a second", 3) }
END {
    split("no flood,500 000 SYNs/s,1 000 000 SYNs/s", loads, ",")
    split("3 4 5", candidates, " ")
    names[3] = "synproxy (default)"; names[4] = "kernel bridge, unprotected"; names[5] = "kernel SYNPROXY (nftables)"
    fill[3] = "#1f6feb"; fill[4] = "#9aa4af"; fill[5] = "#d97706"
    base = 280
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -6 720 356\" width=\"720\" height=\"356\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#24292f\">"
    print "<title>Connections a second through the box while a SYN flood passes</title>"
    print "<rect y=\"-6\" width=\"720\" height=\"356\" fill=\"#ffffff\"/>"
    print "<text x=\"20\" y=\"12\" font-size=\"14\" font-weight=\"bold\">Connections a second of known clients during a SYN flood</text>"
    print "<text x=\"20\" y=\"28\">one core, veth, median of three runs, log scale; figures from docs/performance.md</text>"
    for (exponent = 0; exponent <= 4; exponent++) {
        y = base - exponent * 56
        printf "<line x1=\"70\" x2=\"700\" y1=\"%d\" y2=\"%d\" stroke=\"#d0d7de\"/>\n", y, y
        printf "<text x=\"62\" y=\"%d\" text-anchor=\"end\">%d</text>\n", y + 4, 10 ^ exponent
    }
    for (group = 1; group <= 3; group++) {
        left = 90 + (group - 1) * 205
        for (i = 1; i <= 3; i++) {
            value = median[group, candidates[i]]; height = top(value); x = left + (i - 1) * 60
            printf "<rect x=\"%d\" y=\"%.1f\" width=\"48\" height=\"%.1f\" fill=\"%s\"/>\n", x, base - height, height, fill[candidates[i]]
            printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n", x + 24, base - height - 5, value
        }
        printf "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", left + 84, base + 20, loads[group]
    }
    for (i = 1; i <= 3; i++) {
        x = 90 + (i - 1) * 205
        printf "<rect x=\"%d\" y=\"318\" width=\"12\" height=\"12\" fill=\"%s\"/><text x=\"%d\" y=\"328\">%s</text>\n", x, fill[candidates[i]], x + 18, names[candidates[i]]
    }
    print "</svg>"
}' performance.md
