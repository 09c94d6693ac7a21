//! Plots over time, drawn as SVG.
//!
//! Owns: axes, grid, lines. Promises: every value lies within the axes; a gap in the values (NaN) is
//! a gap in the line; colours come from the page's style, so that a plot follows light and dark. Must
//! not: know what is plotted.
use std::fmt::Write;

use super::escape;

/// Colours of the style, numbered from 1.
pub const COLOURS: usize = 6;

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// One line of a plot.
pub struct Series {
    name: String,
    colour: usize,
    has_area: bool,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// A line in the style's colour number `colour`, over points of time in seconds and value.
    pub fn line(name: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), colour, has_area: false, points }
    }
    /// The same with the area below it filled.
    pub fn area(name: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
        Series { has_area: true, ..Series::line(name, colour, points) }
    }
}

/// A plot of one or more series over time.
pub struct Plot {
    title: String,
    series: Vec<Series>,
    is_logarithmic: bool,
    grey_until_sec: f64,
}

/// The axes: what lies at their ends.
struct Scale {
    until: f64,
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Scale {
    fn x(&self, at: f64) -> f64 {
        LEFT + (at / self.until).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
    fn y(&self, value: f64) -> f64 {
        let part = if self.is_logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        };
        HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Plot {
    pub fn new(title: &str) -> Plot {
        Plot { title: title.into(), series: Vec::new(), is_logarithmic: false, grey_until_sec: 0.0 }
    }
    /// Values on a logarithmic axis; zero is drawn at its lower end.
    pub fn logarithmic(mut self) -> Plot {
        self.is_logarithmic = true;
        self
    }
    /// The time before this lies in grey: it is the warm-up.
    pub fn grey_until(mut self, sec: f64) -> Plot {
        self.grey_until_sec = sec;
        self
    }
    pub fn with(mut self, series: Series) -> Plot {
        self.series.push(series);
        self
    }
    /// The plot as a figure; nothing where there is nothing to show.
    pub fn draw(&self) -> String {
        let values = || self.series.iter().flat_map(|series| &series.points).filter(|(_, y)| y.is_finite());
        let highest = values().map(|&(_, value)| value).fold(0.0, f64::max);
        let until = values().map(|&(at, _)| at).fold(0.0, f64::max);
        if until <= 0.0 {
            return String::new();
        }
        let scale = if self.is_logarithmic {
            let least = values().map(|&(_, value)| value).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
            let low = 10f64.powf(least.min(highest.max(1e-3)).log10().floor());
            let high = 10f64.powf(highest.max(low * 1.01).log10().ceil());
            Scale { until, low, high, is_logarithmic: true }
        } else {
            let step = round_step(highest.max(1e-9) / 4.0);
            Scale { until, low: 0.0, high: step * (highest / step).ceil().max(1.0), is_logarithmic: false }
        };
        let mut svg = String::new();
        if self.grey_until_sec > 0.0 {
            let _ = write!(
                svg,
                "<rect class=\"warmup\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>warm-up</title></rect>",
                scale.x(self.grey_until_sec) - LEFT,
                HEIGHT - TOP - BOTTOM
            );
        }
        self.axes(&scale, &mut svg);
        self.series.iter().for_each(|series| draw_series(series, &scale, &mut svg));
        let legend: String = self
            .series
            .iter()
            .filter(|_| self.series.len() > 1)
            .map(|s| format!("<i style=\"background:var(--c{})\"></i>{}", s.colour, escape(&s.name)))
            .collect();
        let title = escape(&self.title);
        format!(
            "<figure><figcaption>{title}<span class=\"legend\">{legend}</span></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></figure>\n"
        )
    }
    fn axes(&self, scale: &Scale, svg: &mut String) {
        let marks: Vec<f64> = if scale.is_logarithmic {
            let decades = (scale.high / scale.low).log10().round() as i32;
            (0..=decades).map(|n| scale.low * 10f64.powi(n)).collect()
        } else {
            let step = round_step(scale.high / 4.0);
            (0..=(scale.high / step).round() as i32).map(|n| step * f64::from(n)).collect()
        };
        for value in marks {
            let y = scale.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(value)
            );
        }
        let step = round_step(scale.until / 8.0);
        let count = (scale.until / step).floor() as i32;
        for n in 0..=count {
            let at = step * f64::from(n);
            // The last label must not leave the picture.
            let anchor = if scale.x(at) > WIDTH - 30.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{} s</text>",
                scale.x(at),
                HEIGHT - 8.0,
                short(at)
            );
        }
    }
}

fn draw_series(series: &Series, scale: &Scale, svg: &mut String) {
    for run in series.points.split(|(_, value)| !value.is_finite()).filter(|run| !run.is_empty()) {
        let mut path = String::new();
        for (index, &(at, value)) in run.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", scale.x(at), scale.y(value));
        }
        let colour = series.colour;
        if series.has_area {
            let (first, last) = (scale.x(run[0].0), scale.x(run[run.len() - 1].0));
            let floor = HEIGHT - BOTTOM;
            let _ = write!(
                svg,
                "<path class=\"area\" style=\"fill:var(--c{colour})\" d=\"{path}L{last:.1} {floor}L{first:.1} {floor}Z\"/>"
            );
        }
        if run.len() == 1 {
            // A line of one point would be invisible.
            let (x, y) = (scale.x(run[0].0), scale.y(run[0].1));
            let _ = write!(
                svg,
                "<circle style=\"fill:var(--c{colour})\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>"
            );
        }
        let _ = write!(svg, "<path class=\"line\" style=\"stroke:var(--c{colour})\" d=\"{path}\"/>");
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= least * 0.999)
        .unwrap_or(10.0 * power)
}

/// A number with few characters.
fn short(value: f64) -> String {
    let (number, unit) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = format!("{number:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_labels() {
        for (least, want) in
            [(0.9, 1.0), (1.1, 2.0), (2.2, 2.5), (26.0, 50.0), (0.0031, 0.005), (700.0, 1000.0)]
        {
            assert!((round_step(least) / want - 1.0).abs() < 1e-9, "{least}: {}", round_step(least));
        }
        for (value, want) in [(0.0, "0"), (0.25, "0.25"), (1500.0, "1500"), (25_000.0, "25k"), (1e6, "1M")] {
            assert_eq!(short(value), want);
        }
    }

    #[test]
    fn gaps_stay_gaps() {
        let points = vec![(0.5, 1.0), (1.5, f64::NAN), (2.5, 3.0), (3.5, 4.0)];
        let svg = Plot::new("a < b").with(Series::line("x", 1, points)).draw();
        assert_eq!((svg.matches("class=\"line\"").count(), svg.matches("<circle").count()), (2, 1));
        assert!(!svg.contains("NaN") && svg.contains("a &lt; b"), "{svg}");
        assert_eq!(Plot::new("empty").with(Series::line("x", 1, Vec::new())).draw(), "");
        let zeros =
            Plot::new("zeros").logarithmic().with(Series::area("x", 1, vec![(1.0, 0.0), (2.0, 0.0)])).draw();
        assert!(!zeros.contains("NaN") && !zeros.contains("inf"), "{zeros}");
    }
}
