//! A chart of median ratios as SVG.

use crate::report::Report;
use crate::rows::Metric;

const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const LABELS: f64 = 290.0;
const WIDTH: f64 = 820.0;
const VALUES: f64 = 60.0;
const TOP: f64 = 64.0;
/// A longer bar is cut off; its number says how long it would be.
const RATIO_MAX: f64 = 5.0;

/// Draws how many times better the first server is than the one that it is compared with, a bar for each figure.
pub(crate) fn svg(report: &Report) -> Option<String> {
    let rival = report.rival()?;
    let (first, other) = (report.candidates.first()?.title(), report.candidates[rival].title());
    let bars: Vec<(String, f64)> = report
        .results
        .iter()
        .flat_map(|result| {
            let bar = |metric: &Metric| Some((label(result.row.name, metric), result.ratios(rival, metric)?.median));
            result.row.metrics.iter().filter_map(bar).collect::<Vec<_>>()
        })
        .collect();
    let longest = bars.iter().map(|(_, ratio)| *ratio).fold(1.5, f64::max).min(RATIO_MAX);
    let scale = (WIDTH - LABELS - VALUES) / longest;
    let height = TOP + bars.len() as f64 * (BAR + GAP) + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" role=\"img\">\n<title>{first} against {other}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\" font-weight=\"bold\" fill=\"#1f2328\">{first} against {other}</text>\n\
         <text x=\"16\" y=\"44\" fill=\"#59636e\">times better, median of alternating rounds; the line is a draw</text>\n"
    );
    for (index, (label, ratio)) in bars.iter().enumerate() {
        let y = TOP + index as f64 * (BAR + GAP);
        let width = ratio.min(RATIO_MAX) * scale;
        let colour = if *ratio >= 1.0 { "#1a7f64" } else { "#bf5b04" };
        let text_y = y + BAR - 5.0;
        svg += &format!(
            "<text x=\"{:.0}\" y=\"{text_y:.0}\" text-anchor=\"end\" fill=\"#1f2328\">{}</text>\n\
             <rect x=\"{LABELS:.0}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR:.0}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{text_y:.0}\" fill=\"#1f2328\">{ratio:.2}</text>\n",
            LABELS - 8.0,
            escape(label),
            LABELS + width + 6.0,
        );
    }
    let line = LABELS + scale;
    svg += &format!(
        "<line x1=\"{line:.1}\" y1=\"{:.0}\" x2=\"{line:.1}\" y2=\"{height:.0}\" stroke=\"#59636e\" \
         stroke-dasharray=\"3 3\"/>\n</svg>\n",
        TOP - 8.0
    );
    Some(svg)
}

fn label(row: &str, metric: &Metric) -> String {
    if metric.unit.is_empty() {
        return format!("{row}: {}", metric.name);
    }
    format!("{row}: {}, {}", metric.name, metric.unit)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
