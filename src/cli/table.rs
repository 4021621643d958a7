//! Tables and figures for a terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};

/// Prints to standard output. A reader that has seen enough (`| head`) is not an error.
pub fn print(text: &str) {
    write(text);
}

/// The same; whether there is a reader still.
pub fn write(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Prints a JSON document, indented.
pub fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// Whether standard output shows colours: a terminal, and nobody set NO_COLOR (<https://no-color.org>).
pub fn colours() -> bool {
    io::stdout().is_terminal() && !no_color()
}

/// Whether the user asked for no colours.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Without what would move the cursor; line feeds stay.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect()
}

/// A table under construction: columns whose name begins with `>` are aligned to the right.
pub struct Rows {
    table: Table,
    right: Vec<bool>,
}

/// A cell: its text and the meaning that colours it.
pub struct Value(pub String, pub Tone);

/// What a value means to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Neither good nor bad.
    Plain,
    /// As it should be.
    Good,
    /// On the way, or on purpose.
    Note,
    /// Something is wrong.
    Bad,
    /// Of no importance now.
    Dim,
}

impl<T: ToString> From<T> for Value {
    fn from(text: T) -> Value {
        Value(text.to_string(), Tone::Plain)
    }
}

/// A count that matters only when it is not zero.
pub fn trouble(count: u64) -> Value {
    Value(count.to_string(), if count == 0 { Tone::Dim } else { Tone::Note })
}

/// The tone of a backend's or VIP's state.
pub fn tone(state: &str) -> Tone {
    match state {
        "up" | "active" => Tone::Good,
        "starting" | "drain" | "claiming" | "releasing" => Tone::Note,
        "down" | "ejected" | "fault" => Tone::Bad,
        "disabled" | "standby" => Tone::Dim,
        _ => Tone::Plain,
    }
}

impl Rows {
    /// With these column names.
    pub fn new(columns: &[&str]) -> Rows {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        match io::stdout().is_terminal() {
            // Fitted to the width of the terminal.
            true => table.set_content_arrangement(ContentArrangement::Dynamic),
            // For grep and awk: one line a row, however long.
            false => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        if !colours() {
            table.force_no_tty();
            if let Ok((width, _)) = ratatui::crossterm::terminal::size() {
                table.set_width(width);
            }
        }
        let right: Vec<bool> = columns.iter().map(|name| name.starts_with('>')).collect();
        let heads = columns
            .iter()
            .zip(&right)
            .map(|(name, &right)| align(Cell::new(name.trim_start_matches('>')), right).fg(Color::DarkGrey));
        table.set_header(heads.collect::<Vec<_>>());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Rows { table, right }
    }

    /// Adds a row, one value for each column.
    pub fn row<const N: usize>(&mut self, values: [Value; N]) {
        let cells = values.into_iter().zip(&self.right).map(|(Value(text, tone), &right)| {
            let cell = align(Cell::new(clean(&text)), right);
            match tone {
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Note => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
                Tone::Dim => cell.fg(Color::DarkGrey),
            }
        });
        self.table.add_row(cells.collect::<Vec<_>>());
    }

    /// The table, each line indented.
    pub fn finish(self, indent: &str) -> String {
        self.table
            .lines()
            .map(|line| format!("{indent}{}\n", line.trim_end()))
            .collect()
    }
}

fn align(cell: Cell, right: bool) -> Cell {
    cell.set_alignment(if right {
        CellAlignment::Right
    } else {
        CellAlignment::Left
    })
}

/// A number of bytes, such as `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// `1.5 MB/s`, as line rates are quoted.
pub fn rate(per_second: f64) -> String {
    scaled(per_second, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

/// A number, such as `1.5k`.
pub fn count(n: f64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "G", "T"]).trim_end().to_string()
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // Rounded figures must not reach the step: 1023.99 KiB is 1.0 MiB.
    while value >= step - 0.05 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let space = if units[0].is_empty() { "" } else { " " };
    match unit == 0 || value >= 99.95 {
        true => format!("{value:.0}{space}{}", units[unit]),
        false => format!("{value:.1}{space}{}", units[unit]),
    }
}

/// `12s`, `3m 4s`, `5h 2m`, `9d 1h`.
pub fn age(seconds: u64) -> String {
    match seconds {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m {}s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        s => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// `0.31 ms`, `-` if unknown.
pub fn millis(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.2} ms"),
        Some(value) if value < 1000.0 => format!("{value:.0} ms"),
        Some(value) => format!("{:.1} s", value / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_like_this() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (n, text) in [(0.0, "0"), (999.0, "999"), (1500.0, "1.5k"), (2e6, "2.0M")] {
            assert_eq!(count(n), text, "{n}");
        }
        for (s, text) in [
            (0, "0s"),
            (61, "1m 1s"),
            (3600, "1h 0m"),
            (90_000, "1d 1h"),
            (864_000, "10d 0h"),
        ] {
            assert_eq!(age(s), text, "{s}");
        }
        for (ms, text) in [
            (None, "-"),
            (Some(0.312), "0.31 ms"),
            (Some(41.6), "42 ms"),
            (Some(2500.0), "2.5 s"),
        ] {
            assert_eq!(millis(ms), text);
        }
    }

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\u{9b}c\rd\ne"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\ne");
    }

    #[test]
    fn a_table_has_one_line_a_row_when_nobody_looks() {
        let mut rows = Rows::new(&["NAME", ">N"]);
        rows.row(["x".repeat(300).into(), 7.into()]);
        rows.row([Value("\x1b[31m".into(), Tone::Bad), 12.into()]);
        let text = rows.finish("  ");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with("x   7") && lines[2].ends_with(" 12"), "{text}");
        assert!(!text.contains('\x1b'), "no colour without a terminal");
    }
}
