//! `--plot`: rows as bars in an SVG file, with the baseline's beside them.
//!
//! Every test has a scale of its own, since a prompt is a hundred times faster than a continuation. A bar ends at the median;
//! the line across its end goes from the slowest repetition to the fastest.

use std::fmt::Write as _;
use std::path::Path;

use super::baseline::Baseline;
use super::timed::Timed;
use crate::exit::{Failure, Outcome};
use crate::output::Destination;

/// Sizes in pixels.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 20.0;
/// Where bars begin and end.
const BARS: [f64; 2] = [330.0, 780.0];
const BAR_HEIGHT: f64 = 14.0;
const ROW_GAP: f64 = 10.0;
const TITLE_HEIGHT: f64 = 30.0;
const AXIS_HEIGHT: f64 = 34.0;
/// Longest label of a row, in characters.
const MAX_LABEL: usize = 46;
/// Ticks of a scale, at most.
const MAX_TICKS: f64 = 6.0;
const NOW: &str = "#2b6cb0";
const BEFORE: &str = "#b8c2cc";
const INK: &str = "#1a202c";
const GRID: &str = "#e2e8f0";

/// Where the picture goes.
///
/// Errors: a file that is not called `.svg`; a place that takes no file.
pub(super) fn check(path: &Path) -> Outcome<Destination> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
        return Err(Failure::usage(format!("--plot {}: want a file named .svg", path.display())));
    }
    Destination::check_with_folder(path)
}

/// Writes the picture.
///
/// Errors: a file that cannot be written.
pub(super) fn write(destination: &Destination, rows: &[Timed], baseline: Option<&Baseline>) -> Outcome<()> {
    destination.write(picture(rows, baseline).as_bytes()).map_err(Failure::output)
}

/// Rows of one test.
struct Panel<'a> {
    test: String,
    rows: Vec<(&'a Timed, Option<&'a Timed>)>,
}

impl Panel<'_> {
    fn height(&self) -> f64 {
        TITLE_HEIGHT + self.rows.iter().map(|&(_, before)| row_height(before)).sum::<f64>() + AXIS_HEIGHT
    }

    /// The largest value that is drawn.
    fn largest(&self) -> f64 {
        let bars = self.rows.iter().flat_map(|&(now, before)| [Some(now), before].into_iter().flatten());
        bars.flat_map(|t| [t.figure(t.fastest()), t.figure(t.slowest())]).fold(0.0, f64::max)
    }
}

fn row_height(before: Option<&Timed>) -> f64 {
    BAR_HEIGHT * if before.is_some() { 2.0 } else { 1.0 } + ROW_GAP
}

/// Rows by test, in the order in which tests first come.
fn panels<'a>(rows: &'a [Timed], baseline: Option<&'a Baseline>) -> Vec<Panel<'a>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for row in rows {
        let pair = (row, baseline.and_then(|b| b.partner(row)));
        match panels.iter_mut().find(|p| p.test == row.test()) {
            Some(panel) => panel.rows.push(pair),
            None => panels.push(Panel { test: row.test(), rows: vec![pair] }),
        }
    }
    panels
}

fn picture(rows: &[Timed], baseline: Option<&Baseline>) -> String {
    let panels = panels(rows, baseline);
    let legend = if baseline.is_some() { TITLE_HEIGHT } else { 0.0 };
    let height = 2.0 * MARGIN + legend + panels.iter().map(Panel::height).sum::<f64>();
    let mut svg = Svg(String::new());
    svg.line(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">"
    ));
    svg.line("<title>tympan bench</title>");
    svg.rect([0.0, 0.0, WIDTH, height], "#ffffff");
    let mut y = MARGIN;
    if let Some(baseline) = baseline {
        let file = baseline.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        svg.rect([BARS[0], y, BAR_HEIGHT, BAR_HEIGHT], BEFORE);
        svg.text([BARS[0] + 20.0, y + 11.0], "start", &format!("baseline: {}", cut(&file)));
        svg.rect([BARS[1] - 40.0, y, BAR_HEIGHT, BAR_HEIGHT], NOW);
        svg.text([BARS[1] - 20.0, y + 11.0], "start", "this run");
        y += TITLE_HEIGHT;
    }
    for panel in &panels {
        svg.panel(panel, y);
        y += panel.height();
    }
    svg.line("</svg>");
    svg.0
}

/// The text of a picture so far.
struct Svg(String);

impl Svg {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn rect(&mut self, [x, y, width, height]: [f64; 4], fill: &str) {
        self.line(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
        ));
    }

    fn stroke(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], colour: &str) {
        self.line(&format!("<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\"/>"));
    }

    fn text(&mut self, [x, y]: [f64; 2], anchor: &str, text: &str) {
        self.line(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(text)));
    }

    fn panel(&mut self, panel: &Panel<'_>, top: f64) {
        let unit = panel.rows.first().map_or("", |(now, _)| now.unit());
        let step = tick(panel.largest());
        let end = (panel.largest() / step).ceil().max(1.0) * step;
        let x = |value: f64| BARS[0] + (BARS[1] - BARS[0]) * value / end;
        let (first, last) = (top + TITLE_HEIGHT, top + panel.height() - AXIS_HEIGHT);
        self.line(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
            BARS[0],
            top + 18.0,
            escaped(&panel.test)
        ));
        for i in 0..=(end / step).round() as usize {
            let value = step * i as f64;
            self.stroke([x(value), first], [x(value), last], GRID);
            self.text([x(value), last + 14.0], "middle", &number(value));
        }
        self.text([BARS[1] + 30.0, last + 14.0], "start", unit);
        let mut y = first + ROW_GAP / 2.0;
        for &(now, before) in &panel.rows {
            let height = row_height(before);
            let s = if now.threads() == "1" { "" } else { "s" };
            let label = format!("{}, {} thread{s}", now.model(), now.threads());
            let middle = y + (height - ROW_GAP) / 2.0 + 4.0;
            self.text([BARS[0] - 10.0, middle], "end", &cut(&label));
            if let Some(before) = before {
                self.bar(before, y, &x, BEFORE, &number(before.figure(before.median())));
                y += BAR_HEIGHT;
            }
            let median = now.figure(now.median());
            let change = before.map_or(String::new(), |before| {
                format!(" ({:+.1} %)", (median / before.figure(before.median()) - 1.0) * 100.0)
            });
            self.bar(now, y, &x, NOW, &format!("{} {unit}{change}", number(median)));
            y += BAR_HEIGHT + ROW_GAP;
        }
    }

    fn bar(&mut self, t: &Timed, y: f64, x: &dyn Fn(f64) -> f64, fill: &str, label: &str) {
        let [low, median, high] = [t.slowest(), t.median(), t.fastest()].map(|seconds| x(t.figure(seconds)));
        self.rect([BARS[0], y + 1.0, median - BARS[0], BAR_HEIGHT - 2.0], fill);
        let middle = y + BAR_HEIGHT / 2.0;
        self.stroke([low, middle], [high, middle], INK);
        for end in [low, high] {
            self.stroke([end, middle - 3.0], [end, middle + 3.0], INK);
        }
        self.text([low.max(median).max(high) + 8.0, y + 11.0], "start", label);
    }
}

/// Distance of ticks: 1, 2 or 5 times a power of ten.
fn tick(largest: f64) -> f64 {
    let least = (largest / MAX_TICKS).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|t| *t >= least).unwrap_or(10.0 * power)
}

/// As many digits as a reader compares.
fn number(value: f64) -> String {
    let digits = if value >= 1000.0 || value == 0.0 {
        0
    } else if value >= 100.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_LABEL {
        return text.to_owned();
    }
    let kept: String = text.chars().take(MAX_LABEL - 3).collect();
    format!("{kept}...")
}

/// Text as XML takes it. What XML cannot hold at all becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => write!(out, "{c}").expect("writing to a string does not fail"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_few_round_ticks() {
        for (largest, want) in [(6.0, 1.0), (7.0, 2.0), (130.0, 50.0), (41_000.0, 10_000.0), (0.05, 0.01)] {
            assert!((tick(largest) / want - 1.0).abs() < 1e-9, "{largest}: {}", tick(largest));
        }
    }

    #[test]
    fn texts_cannot_break_the_file() {
        assert_eq!(escaped("a<b>&\"\u{1}"), "a&lt;b&gt;&amp;&quot;?");
        assert_eq!(cut(&"x".repeat(60)).len(), MAX_LABEL);
        assert_eq!(
            (number(1234.5), number(205.46), number(15.0), number(0.0)),
            ("1234".into(), "205.5".into(), "15".into(), "0".into())
        );
    }
}
