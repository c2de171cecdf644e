//! Writes the results as a Markdown table and as a plot over the number of participants.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use plotters::prelude::*;

use crate::compare::Outcome;

/// The columns that are drawn, with their colours.
const DRAWN: [(&str, RGBColor); 4] = [
    ("baseline", RGBColor(200, 70, 60)),
    ("direct-queues", RGBColor(220, 160, 40)),
    ("lanecast-cloning", RGBColor(120, 180, 220)),
    ("lanecast", RGBColor(30, 110, 180)),
];

/// Writes `comparison.md` and `fanout.svg` into `folder`.
pub(crate) fn write(folder: &Path, outcomes: &[Outcome]) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("comparison.md"), table(outcomes))?;
    let fanout: Vec<_> = outcomes.iter().filter(|outcome| outcome.group == "fanout").collect();
    if !fanout.is_empty() {
        plot(&folder.join("fanout.svg"), &fanout)?;
    }
    Ok(())
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "# The comparison\n\n\
         Nanoseconds per delivered message (per look-up, join, …; latencies as they are), medians of interleaved \
         rounds.\nSpread: the middle half of the rounds' ratios, as a part of their median. Written by \
         `perf/compare.sh`.\n`direct-queues` is the crate without its log: a broadcast is a direct send to each \
         participant's own lock-free queue.\n\n\
         | case | times in ns | ratio | spread |\n|---|---|---|---|\n",
    );
    for Outcome { group, name, columns, ratio, spread } in outcomes {
        let times: Vec<String> = columns.iter().map(|(name, nanos)| format!("{name} {nanos:.1}")).collect();
        writeln!(text, "| {group}/{name} | {} | {ratio:.2} | {spread:.2} |", times.join(", "))
            .expect("a string takes everything");
    }
    text
}

/// Plots the time per delivery over the number of participants, one picture per burst, both axes logarithmic.
fn plot(path: &Path, fanout: &[&Outcome]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1000, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    // Both pictures have the same scale, from decade to decade, whatever was measured.
    let times = || fanout.iter().flat_map(|outcome| outcome.columns.iter().map(|(_, nanos)| *nanos));
    let lowest = 10_f64.powf(times().fold(f64::MAX, f64::min).log10().floor());
    let highest = 10_f64.powf(times().fold(f64::MIN, f64::max).log10().ceil());
    // The legend covers no line: only bursts reach the lower end of the scale, so the left picture is empty there.
    let pictures = [(1_u32, SeriesLabelPosition::LowerLeft), (16, SeriesLabelPosition::UpperRight)];
    for (area, (burst, legend)) in root.split_evenly((1, 2)).iter().zip(pictures) {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("broadcasts in bursts of {burst}, 64 B"), ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d((16.0..64_000.0).log_scale(), (lowest..highest).log_scale())?;
        let whole = |number: &f64| format!("{number:.0}");
        chart
            .configure_mesh()
            .x_desc("participants")
            .y_desc("ns per delivered message")
            .x_label_formatter(&whole)
            .y_label_formatter(&whole)
            .draw()?;
        for (column, colour) in DRAWN {
            let points: Vec<(f64, f64)> = fanout
                .iter()
                .filter(|outcome| outcome.name.ends_with(&format!("/burst={burst}/payload=64")))
                .filter_map(|outcome| Some((participants(&outcome.name)?, outcome.column(column)?)))
                .collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
                .label(column)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().position(legend).border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
    }
    root.present()?;
    Ok(())
}

fn participants(name: &str) -> Option<f64> {
    name.strip_prefix("n=")?.split('/').next()?.parse().ok()
}
