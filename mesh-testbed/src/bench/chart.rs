//! A chart of ratios: a bar for each row, a line where both are equal.

use std::fmt::Write as _;

use super::measure::Row;
use super::report::name;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const ROW: f64 = 20.0;
const TOP: f64 = 44.0;
/// Longer bars are cut; their number is beside them.
const LARGEST: f64 = 4.0;

/// The chart as SVG.
pub(super) fn draw(rows: &[Row]) -> String {
    let height = TOP + ROW * rows.len() as f64 + 16.0;
    let scale = (WIDTH - LEFT - 70.0) / LARGEST;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"14\">mesh-agent beside its references: above 1 is \
         better</text>\n"
    );
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let length = row.ratio.clamp(0.0, LARGEST) * scale;
        let colour = if row.ratio >= 1.0 {
            "#2a7f62"
        } else {
            "#b5523b"
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{} {} / {}</text>\
             <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"{:.0}\" \
             fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{:.2}</text>",
            LEFT - 8.0,
            y + 14.0,
            row.path,
            name(row.metric),
            row.reference_name,
            y + 3.0,
            ROW - 6.0,
            LEFT + length + 6.0,
            y + 14.0,
            row.ratio
        );
    }
    let one = LEFT + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"black\" \
         stroke-dasharray=\"3 3\"/>\n</svg>",
        TOP - 6.0,
        height - 12.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::super::measure::Metric;
    use super::*;

    #[test]
    fn every_row_has_a_bar() {
        let row = |ratio| Row {
            path: "l7-http1",
            metric: Metric::Rps,
            ours: 1.0,
            reference: 1.0,
            reference_name: "envoy",
            ratio,
            unit: "requests/s",
            spread: 0.0,
        };
        let svg = draw(&[row(2.0), row(0.5), row(9.0)]);
        assert_eq!(svg.matches("l7-http1 rps / envoy").count(), 3);
        assert_eq!(svg.matches("#b5523b").count(), 1);
        assert!(
            svg.contains(">9.00<"),
            "a cut bar says how long it would be"
        );
    }
}
