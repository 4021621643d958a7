//! Draws the model with ratatui. Nothing is decided here.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table, TableState};

use super::model::{Mode, Model, detail_lines};
use super::view::View;
use crate::cli::table::{Tone, age, count, rate};

/// Below this height the graphs are left out.
const GRAPHS_HEIGHT_MIN: u16 = 18;

const KEYS: &[(&str, &str)] = &[
    ("1-5", "view"),
    ("↑↓", "select"),
    ("Enter", "open"),
    ("/", "filter"),
    ("s r", "sort"),
    ("k", "kill"),
    ("p", "pause"),
    ("?", "help"),
    ("q", "quit"),
];

/// Draws everything.
pub fn draw(frame: &mut Frame, model: &Model, colours: bool) {
    let paint = Paint { colours };
    let graphs = if frame.area().height >= GRAPHS_HEIGHT_MIN { 5 } else { 0 };
    let [head, graph, tabs, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(graphs),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(head_line(model, &paint), head);
    if graphs > 0 {
        draw_graphs(frame, graph, model, &paint);
    }
    frame.render_widget(tabs_line(model, &paint), tabs);
    draw_table(frame, body, model, &paint);
    frame.render_widget(foot_line(model, &paint), keys);
    match &model.mode {
        Mode::Detail(id) => draw_detail(frame, model, *id),
        Mode::Help => draw_help(frame),
        Mode::Table | Mode::Filter | Mode::Confirm(_) => {}
    }
}

struct Paint {
    colours: bool,
}

impl Paint {
    fn fg(&self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn dim(&self) -> Style {
        self.fg(Color::DarkGray)
    }

    fn tone(&self, tone: Tone) -> Style {
        match tone {
            Tone::Plain => Style::new(),
            Tone::Good => self.fg(Color::Green),
            Tone::Note => self.fg(Color::Yellow),
            Tone::Bad => self.fg(Color::Red),
            Tone::Dim => self.dim(),
        }
    }
}

fn head_line<'a>(model: &'a Model, paint: &Paint) -> Line<'a> {
    if let Some(trouble) = &model.trouble {
        return Line::styled(format!(" {trouble}"), paint.fg(Color::Red));
    }
    let status = &model.latest().status;
    let [new, refused, up, down] = model.totals();
    let live = status.process.connections + status.process.udp_sessions;
    let mut spans = vec![
        Span::from(format!(" weir {} ", status.version)).bold(),
        Span::styled(format!("up {}  ", age(status.uptime_s)), paint.dim()),
    ];
    for (figure, label) in [
        (count(live.into()), " live  "),
        (count(new), " new/s  "),
        (rate(up), " in  "),
        (rate(down), " out  "),
    ] {
        spans.push(Span::from(figure).bold());
        spans.push(Span::styled(label, paint.dim()));
    }
    if refused > 0.0 {
        spans.push(Span::styled(
            format!("{} refused/s", count(refused)),
            paint.fg(Color::Yellow),
        ));
    }
    Line::from(spans)
}

fn draw_graphs(frame: &mut Frame, area: Rect, model: &Model, paint: &Paint) {
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(area);
    let sample = model.latest();
    let graphs = [
        ("to clients", &sample.throughput, rate as fn(f64) -> String, Color::Cyan),
        (
            "new connections/s",
            &sample.new,
            count as fn(f64) -> String,
            Color::Yellow,
        ),
    ];
    for (area, (title, values, format, colour)) in halves.into_iter().zip(graphs) {
        let width = area.width.saturating_sub(2) as usize;
        // What fits, newest at the right.
        let shown = &values[values.len().saturating_sub(width)..];
        let peak = shown.iter().copied().max().unwrap_or(0);
        let mut padded = vec![0; width - shown.len()];
        padded.extend(shown);
        let title = format!(" {title}, peak {} ", format(peak as f64));
        let block = Block::bordered().border_style(paint.dim()).title(title);
        let graph = Sparkline::default()
            .block(block)
            .data(padded)
            .max(peak.max(1))
            .style(paint.fg(colour));
        frame.render_widget(graph, area);
    }
}

fn tabs_line<'a>(model: &'a Model, paint: &Paint) -> Line<'a> {
    let mut spans = vec![Span::from(" ")];
    for (ix, view) in View::ALL.into_iter().enumerate() {
        let tab = Span::from(format!(" {} {} ", ix + 1, view.title()));
        spans.push(match view == model.view {
            true => tab.add_modifier(Modifier::REVERSED),
            false => tab.style(paint.dim()),
        });
    }
    if let Some(scope) = &model.scope {
        spans.push(Span::styled(format!("  of {scope}"), paint.fg(Color::Cyan)));
    }
    if model.mode == Mode::Filter || !model.filter.is_empty() {
        let cursor = if model.mode == Mode::Filter { "_" } else { "" };
        spans.push(Span::styled(
            format!("  /{}{cursor}", model.filter),
            paint.fg(Color::Cyan),
        ));
    }
    if model.paused {
        spans.push(Span::styled("  paused", paint.fg(Color::Yellow)));
    }
    Line::from(spans)
}

fn draw_table(frame: &mut Frame, area: Rect, model: &Model, paint: &Paint) {
    let rows = model.rows();
    let columns = model.view.columns();
    let (sorted, descending) = model.order();
    let heads = columns.iter().enumerate().map(|(ix, &(name, _, right))| {
        let name = match (ix == sorted, descending) {
            (false, _) => name.to_string(),
            (true, true) => format!("{name}▼"),
            (true, false) => format!("{name}▲"),
        };
        let style = if ix == sorted { Style::new().bold() } else { paint.dim() };
        Cell::from(aligned(name, right)).style(style)
    });
    // Names share what is left over; the rest is as wide as it must be.
    let mut widths: Vec<u16> = columns.iter().map(|&(_, width, _)| width).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.text.chars().count().min(40) as u16);
        }
    }
    let room = area.width.saturating_sub(2 + columns.len() as u16);
    shrink(&mut widths, columns, room);
    let shown =
        rows.iter().map(|row| {
            Row::new(row.cells.iter().zip(columns).map(|(cell, &(_, _, right))| {
                Cell::from(aligned(cell.text.clone(), right)).style(paint.tone(cell.tone))
            }))
        });
    let table = Table::new(shown, widths.iter().map(|&width| Constraint::Length(width)))
        .header(Row::new(heads))
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol(" ");
    let selected = (!rows.is_empty()).then_some(model.selected);
    let mut state = TableState::default().with_selected(selected);
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let empty = match (model.has_sample(), model.view) {
            (false, _) => "waiting for weir",
            (true, View::Sources) if model.filter.is_empty() => "no pool has sources of members",
            (true, View::Vips) => "no VIPs are configured",
            (true, _) if !model.filter.is_empty() => "nothing matches the filter",
            (true, _) => "none",
        };
        let below = Rect {
            y: area.y + 1,
            height: area.height.saturating_sub(1),
            ..area
        };
        frame.render_widget(Paragraph::new(format!("  {empty}")).style(paint.dim()), below);
    }
}

/// Takes width from the widest texts until the table fits; never more than the least width.
fn shrink(widths: &mut [u16], columns: &[(&str, u16, bool)], room: u16) {
    while widths.iter().sum::<u16>() > room {
        let spare = |ix: &usize| widths[*ix].saturating_sub(columns[*ix].1);
        match (0..widths.len())
            .filter(|ix| !columns[*ix].2 && spare(ix) > 0)
            .max_by_key(spare)
        {
            Some(ix) => widths[ix] -= 1,
            None => return,
        }
    }
}

fn aligned(text: String, right: bool) -> Line<'static> {
    Line::from(text).alignment(if right { Alignment::Right } else { Alignment::Left })
}

fn foot_line<'a>(model: &'a Model, paint: &Paint) -> Line<'a> {
    if let Mode::Confirm(id) = model.mode {
        return Line::styled(
            format!(" End connection {id}?  y = yes, any other key = no"),
            paint.fg(Color::Yellow).bold(),
        );
    }
    if let Some((message, _)) = &model.message {
        return Line::styled(format!(" {message}"), Style::new().bold());
    }
    let mut spans = vec![Span::from(" ")];
    for (key, means) in KEYS {
        spans.push(Span::from(*key).bold());
        spans.push(Span::styled(format!(" {means} "), paint.dim()));
    }
    Line::from(spans)
}

fn draw_detail(frame: &mut Frame, model: &Model, id: u64) {
    let lines: Vec<Line> = match model.detail(id) {
        None => vec![Line::from(" It has ended.")],
        Some((connection, rates)) => detail_lines(connection, rates)
            .into_iter()
            .map(|(name, value)| Line::from(vec![format!(" {name:<12}").dim(), Span::from(value)]))
            .collect(),
    };
    draw_box(
        frame,
        &format!(" connection {id} "),
        " k kill, any other key: back ",
        lines,
    );
}

fn draw_help(frame: &mut Frame) {
    let lines = [
        ("1 2 3 4, Tab", "backends, listeners, connections, VIPs"),
        ("up, down", "select (PgUp, PgDn, Home, End)"),
        ("Enter", "connections of the backend or listener; then one in full"),
        ("Esc", "back to all"),
        ("s, S", "sort by the next, the previous column"),
        ("r", "reverse the order"),
        ("/", "show only rows that contain a text; Esc clears"),
        ("k", "end the selected connection (asks first)"),
        ("p, space", "pause and go on"),
        ("q", "quit"),
    ];
    let lines = lines
        .into_iter()
        .map(|(key, means)| Line::from(vec![format!(" {key:<14}").bold(), means.into()]))
        .collect();
    draw_box(frame, " keys ", " any key: back ", lines);
}

fn draw_box(frame: &mut Frame, title: &str, foot: &str, lines: Vec<Line>) {
    let (width, height) = (74.min(frame.area().width), lines.len() as u16 + 2);
    let area = frame
        .area()
        .centered(Constraint::Length(width), Constraint::Length(height));
    frame.render_widget(Clear, area);
    let block = Block::bordered()
        .title(title.to_string())
        .title_bottom(foot.to_string());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
