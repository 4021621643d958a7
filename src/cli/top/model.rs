//! What `weir top` knows and shows: pure. Samples and keys in, rows and orders out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::view::View;
use crate::api::status::{Connection, Status};
use crate::cli::table::{self, Tone, age, bytes, count, millis, rate, tone};

/// What the running weir said at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The status document.
    pub status: Status,
    /// Live connections, not all of them if there are very many.
    pub connections: Vec<Connection>,
    /// Bytes to clients each second of the last minutes, oldest first.
    pub throughput: Vec<u64>,
    /// New connections each second of the last minutes, oldest first.
    pub new: Vec<u64>,
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The text as it is shown.
    pub text: String,
    /// Whether it is good or bad, which gives its colour.
    pub tone: Tone,
    key: Key,
}

#[derive(Debug, Clone, PartialEq, PartialOrd)]
enum Key {
    Number(f64),
    Text(String),
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The same from sample to sample: the selection stays on it.
    pub id: String,
    /// As many as the view has columns.
    pub cells: Vec<Cell>,
    /// What Enter leads to.
    target: Target,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    None,
    /// The connections of a backend (`pool/name`) or of a listener.
    Connections {
        backend: Option<String>,
        listener: Option<String>,
    },
    /// One connection.
    Detail(u64),
}

/// What the user wants of the terminal's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Draw the screen again, nothing else.
    Nothing,
    /// End the program.
    Quit,
    /// End this connection.
    Kill(u64),
}

/// A key, as far as it means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Press {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    BackTab,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// What the keys go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The keys go to the table.
    Table,
    /// The filter is being written.
    Filter,
    /// One connection in full.
    Detail(u64),
    /// Really end it?
    Confirm(u64),
    /// The keys, explained.
    Help,
}

/// The whole state of `weir top`.
#[derive(Debug)]
pub struct Model {
    /// Which table is shown.
    pub view: View,
    /// Where keys go.
    pub mode: Mode,
    /// Rows contain this, in any cell.
    pub filter: String,
    /// Only connections of this backend or listener.
    pub scope: Option<String>,
    /// Selected row, if there is one.
    pub selected: usize,
    /// New samples are not shown.
    pub paused: bool,
    /// What happened last, and when.
    pub message: Option<(String, Instant)>,
    /// Why there are no samples.
    pub trouble: Option<String>,
    orders: [(usize, bool); View::ALL.len()],
    scope_backend: Option<String>,
    scope_listener: Option<String>,
    sample: Sample,
    before: Option<(Instant, Counters)>,
    rates: Rates,
    last: Option<Instant>,
}

/// Counters of one sample, by row id.
type Counters = HashMap<String, [u64; 4]>;
/// What they grow by each second.
type Rates = HashMap<String, [f64; 4]>;

impl Default for Model {
    fn default() -> Model {
        Model {
            view: View::Backends,
            mode: Mode::Table,
            filter: String::new(),
            scope: None,
            selected: 0,
            paused: false,
            message: None,
            trouble: None,
            orders: View::ALL.map(View::first_order),
            scope_backend: None,
            scope_listener: None,
            sample: Sample::default(),
            before: None,
            rates: Rates::new(),
            last: None,
        }
    }
}

impl Model {
    /// Takes a sample over, unless paused.
    pub fn sample(&mut self, now: Instant, sample: Sample) {
        self.trouble = None;
        if self.paused {
            return;
        }
        let selected = self.rows().get(self.selected).map(|row| row.id.clone());
        let counters = counters(&sample);
        if let Some((then, before)) = &self.before {
            let passed = now.saturating_duration_since(*then).as_secs_f64().max(1e-3);
            self.rates = counters
                .iter()
                .map(|(id, new)| {
                    // What was not there before has done all of it since then.
                    let zero = if id.starts_with("conn") { &[0; 4] } else { new };
                    let old = before.get(id).unwrap_or(zero);
                    let grown = |ix: usize| new[ix].saturating_sub(old[ix]) as f64 / passed;
                    (id.clone(), std::array::from_fn(grown))
                })
                .collect();
        }
        self.before = Some((now, counters));
        self.sample = sample;
        self.last = Some(now);
        self.follow(selected);
    }

    /// What was sampled last.
    pub fn latest(&self) -> &Sample {
        &self.sample
    }

    /// Whether there was a sample.
    pub fn has_sample(&self) -> bool {
        self.last.is_some()
    }

    /// Column sorted by and whether the greatest comes first.
    pub fn order(&self) -> (usize, bool) {
        self.orders[self.view as usize]
    }

    /// The connection shown in full, if it is alive.
    pub fn detail(&self, id: u64) -> Option<(&Connection, [f64; 4])> {
        let connection = self.sample.connections.iter().find(|conn| conn.id == id)?;
        Some((connection, self.rate(&format!("conn {id}"))))
    }

    /// New connections, refusals, bytes from and to clients: each second, all listeners together.
    pub fn totals(&self) -> [f64; 4] {
        let mut sum = [0.0; 4];
        for listener in &self.sample.status.listeners {
            let rates = self.rate(&format!("listener {}", listener.name));
            sum.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate);
        }
        sum
    }

    fn rate(&self, id: &str) -> [f64; 4] {
        self.rates.get(id).copied().unwrap_or_default()
    }

    /// Keeps the selection on the row it was on.
    fn follow(&mut self, id: Option<String>) {
        let rows = self.rows();
        let found = id.and_then(|id| rows.iter().position(|row| row.id == id));
        self.selected = found.unwrap_or(self.selected).min(rows.len().saturating_sub(1));
    }

    /// The rows of the view: filtered, sorted.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = match self.view {
            View::Backends => self.backends(),
            View::Listeners => self.listeners(),
            View::Connections => self.connections(),
            View::Vips => self.vips(),
            View::Sources => self.sources(),
        };
        let needle = self.filter.to_lowercase();
        rows.retain(|row| row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&needle)));
        let (column, descending) = self.order();
        rows.sort_by(|a, b| {
            let order = a.cells[column]
                .key
                .partial_cmp(&b.cells[column].key)
                .unwrap_or(std::cmp::Ordering::Equal);
            let order = if descending { order.reverse() } else { order };
            order.then_with(|| a.id.cmp(&b.id))
        });
        rows
    }

    fn backends(&self) -> Vec<Row> {
        let pools = self.sample.status.pools.iter();
        let all = pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
        all.map(|(pool, backend)| {
            let name = format!("{}/{}", pool.name, backend.name);
            let id = format!("backend {name}");
            let [new, failed, up, down] = self.rate(&id);
            Row {
                cells: vec![
                    text(&name),
                    text(&backend.address),
                    toned(&backend.state, tone(&backend.state)),
                    number(backend.active, backend.active.to_string()),
                    number(new, count(new)),
                    number(up, per_second(up)),
                    number(down, per_second(down)),
                    Cell {
                        tone: if failed > 0.0 { Tone::Bad } else { Tone::Plain },
                        ..number(backend.failed as f64, count(backend.failed as f64))
                    },
                    number(backend.connect_ms.unwrap_or(-1.0), millis(backend.connect_ms)),
                ],
                id,
                target: Target::Connections {
                    backend: Some(name),
                    listener: None,
                },
            }
        })
        .collect()
    }

    /// The pool of a listener, and who waits for room there.
    fn pool_of(&self, listener: &crate::api::status::Listener) -> Cell {
        let pools = &self.sample.status.pools;
        let pool = pools.iter().find(|pool| pool.name == listener.pool);
        match pool.and_then(|pool| pool.queue.as_ref()) {
            Some(queue) if queue.length > 0 => Cell {
                tone: Tone::Note,
                ..text(&format!(
                    "{}: {} wait, {} ms",
                    listener.pool, queue.length, queue.longest_ms
                ))
            },
            _ => text(listener.pool_shown()),
        }
    }

    fn listeners(&self) -> Vec<Row> {
        let row = |listener: &crate::api::status::Listener| {
            let id = format!("listener {}", listener.name);
            let [new, refused, up, down] = self.rate(&id);
            Row {
                cells: vec![
                    text(&listener.name),
                    text(&listener.protocol),
                    text(&listener.engine),
                    text(&listener.bind.join(" ")),
                    self.pool_of(listener),
                    number(listener.active, listener.active.to_string()),
                    number(new, count(new)),
                    Cell {
                        tone: if refused > 0.0 { Tone::Note } else { Tone::Plain },
                        ..number(listener.refused as f64, count(listener.refused as f64))
                    },
                    number(up, per_second(up)),
                    number(down, per_second(down)),
                ],
                id,
                target: Target::Connections {
                    backend: None,
                    listener: Some(listener.name.clone()),
                },
            }
        };
        self.sample.status.listeners.iter().map(row).collect()
    }

    fn connections(&self) -> Vec<Row> {
        let inside = |connection: &&Connection| {
            self.scope_backend
                .as_ref()
                .is_none_or(|name| connection.place() == *name)
                && self
                    .scope_listener
                    .as_ref()
                    .is_none_or(|name| connection.listener == *name)
        };
        let row = |connection: &Connection| {
            let id = format!("conn {}", connection.id);
            let [_, _, up, down] = self.rate(&id);
            Row {
                cells: vec![
                    number(connection.id as f64, connection.id.to_string()),
                    text(&connection.client),
                    text(&connection.place()),
                    text(&connection.state),
                    number(connection.age_ms as f64, age(connection.age_ms / 1000)),
                    number(connection.idle_ms as f64, age(connection.idle_ms / 1000)),
                    number(up, per_second(up)),
                    number(down, per_second(down)),
                ],
                id,
                target: Target::Detail(connection.id),
            }
        };
        self.sample.connections.iter().filter(inside).map(row).collect()
    }

    fn vips(&self) -> Vec<Row> {
        let row = |vip: &crate::api::status::Vip| Row {
            id: format!("vip {}", vip.address),
            cells: vec![
                text(&vip.address),
                text(&vip.interface),
                toned(&vip.state, tone(&vip.state)),
                text(vip.holder.as_deref().unwrap_or("-")),
                number(vip.since_s as f64, age(vip.since_s)),
                text(&vip.reason),
            ],
            target: Target::None,
        };
        self.sample.status.vips.iter().map(row).collect()
    }

    fn sources(&self) -> Vec<Row> {
        let pools = self.sample.status.pools.iter();
        let all = pools.flat_map(|pool| pool.sources.iter().map(move |source| (pool, source)));
        all.map(|(pool, source)| Row {
            id: format!("source {} {}", pool.name, source.source),
            cells: vec![
                text(&pool.name),
                text(&source.source),
                number(source.members as f64, source.members.to_string()),
                match source.age_s {
                    None => toned("never", Tone::Bad),
                    Some(seconds) => number(seconds, age(seconds as u64)),
                },
                number(source.failures as f64, source.failures.to_string()),
                toned(source.error.as_deref().unwrap_or("-"), Tone::Bad),
            ],
            target: Target::None,
        })
        .collect()
    }

    /// Carries out what a key stands for.
    pub fn press(&mut self, key: Press) -> Wish {
        match (self.mode.clone(), key) {
            (Mode::Filter, Press::Char(c)) => self.filter.push(c),
            (Mode::Filter, Press::Backspace) => drop(self.filter.pop()),
            (Mode::Filter, Press::Enter) => self.mode = Mode::Table,
            (Mode::Filter, Press::Escape) => {
                self.filter.clear();
                self.mode = Mode::Table;
            }
            (Mode::Filter, _) => {}
            (Mode::Confirm(id), Press::Char('y')) => {
                self.mode = Mode::Table;
                return Wish::Kill(id);
            }
            (Mode::Confirm(_), _) => self.mode = Mode::Table,
            (Mode::Help, _) => self.mode = Mode::Table,
            (Mode::Detail(id), Press::Char('k')) => self.mode = Mode::Confirm(id),
            (Mode::Detail(_), Press::Char('q')) => return Wish::Quit,
            (Mode::Detail(_), _) => self.mode = Mode::Table,
            (Mode::Table, key) => return self.press_table(key),
        }
        self.selected = self.selected.min(self.rows().len().saturating_sub(1));
        Wish::Nothing
    }

    fn press_table(&mut self, key: Press) -> Wish {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let order = &mut self.orders[self.view as usize];
        let columns = self.view.columns().len();
        match key {
            Press::Char('q') => return Wish::Quit,
            Press::Char(c @ '1'..='5') => self.go(View::ALL[c as usize - '1' as usize]),
            Press::Tab => self.go(View::ALL[(self.view as usize + 1) % View::ALL.len()]),
            Press::BackTab => self.go(View::ALL[(self.view as usize + View::ALL.len() - 1) % View::ALL.len()]),
            Press::Up => self.selected = self.selected.saturating_sub(1),
            Press::Down => self.selected = (self.selected + 1).min(last),
            Press::PageUp => self.selected = self.selected.saturating_sub(10),
            Press::PageDown => self.selected = (self.selected + 10).min(last),
            Press::Home => self.selected = 0,
            Press::End => self.selected = last,
            // Figures are most interesting when they are great, names from A.
            Press::Char('s') => {
                order.0 = (order.0 + 1) % columns;
                order.1 = self.view.columns()[order.0].2;
            }
            Press::Char('S') => {
                order.0 = (order.0 + columns - 1) % columns;
                order.1 = self.view.columns()[order.0].2;
            }
            Press::Char('r') => order.1 = !order.1,
            Press::Char('/') => self.mode = Mode::Filter,
            Press::Char('p' | ' ') => self.paused = !self.paused,
            Press::Char('?' | 'h') => self.mode = Mode::Help,
            Press::Escape if !self.filter.is_empty() => self.filter.clear(),
            Press::Escape => self.unscope(),
            Press::Char('k') => {
                if let Some(Target::Detail(id)) = rows.get(self.selected).map(|row| &row.target) {
                    self.mode = Mode::Confirm(*id);
                }
            }
            Press::Enter => match rows.get(self.selected).map(|row| row.target.clone()) {
                Some(Target::Detail(id)) => self.mode = Mode::Detail(id),
                Some(Target::Connections { backend, listener }) => {
                    self.go(View::Connections);
                    self.filter.clear();
                    self.scope = backend.clone().or(listener.clone());
                    (self.scope_backend, self.scope_listener) = (backend, listener);
                }
                Some(Target::None) | None => {}
            },
            Press::Char(_) | Press::Backspace => {}
        }
        Wish::Nothing
    }

    fn go(&mut self, view: View) {
        self.unscope();
        (self.view, self.selected) = (view, 0);
    }

    fn unscope(&mut self) {
        (self.scope, self.scope_backend, self.scope_listener) = (None, None, None);
    }

    /// Notes what became of an order.
    pub fn say(&mut self, now: Instant, message: String) {
        self.message = Some((table::clean(&message), now));
    }

    /// Forgets it after a while.
    pub fn tick(&mut self, now: Instant) {
        let old = |(_, at): &(String, Instant)| now.saturating_duration_since(*at) > Duration::from_secs(5);
        if self.message.as_ref().is_some_and(old) {
            self.message = None;
        }
    }
}

fn text(text: &str) -> Cell {
    toned(text, Tone::Plain)
}

fn toned(text: &str, tone: Tone) -> Cell {
    let text = table::clean(text);
    Cell {
        key: Key::Text(text.clone()),
        text,
        tone,
    }
}

fn number(key: impl Into<f64>, text: String) -> Cell {
    Cell {
        text,
        tone: Tone::Plain,
        key: Key::Number(key.into()),
    }
}

/// A rate under a head that says it is one.
fn per_second(bytes: f64) -> String {
    rate(bytes).trim_end_matches("/s").to_string()
}

/// New, failed or refused, bytes up, bytes down.
fn counters(sample: &Sample) -> Counters {
    let mut counters = Counters::new();
    for listener in &sample.status.listeners {
        counters.insert(
            format!("listener {}", listener.name),
            [
                listener.accepted,
                listener.refused,
                listener.bytes_in,
                listener.bytes_out,
            ],
        );
    }
    for pool in &sample.status.pools {
        for backend in &pool.backends {
            counters.insert(
                format!("backend {}/{}", pool.name, backend.name),
                [backend.total, backend.failed, backend.bytes_in, backend.bytes_out],
            );
        }
    }
    for connection in &sample.connections {
        let bytes = [0, 0, connection.bytes_up, connection.bytes_down];
        counters.insert(format!("conn {}", connection.id), bytes);
    }
    counters
}

/// The lines of the detail of a connection.
pub fn detail_lines(connection: &Connection, rates: [f64; 4]) -> Vec<(&'static str, String)> {
    vec![
        ("id", connection.id.to_string()),
        ("listener", format!("{} ({})", connection.listener, connection.protocol)),
        ("client", connection.client.clone()),
        ("backend", connection.place()),
        match &*connection.engine {
            // It has no workers.
            "kernel" => ("engine", connection.engine.clone()),
            _ => ("worker", connection.worker.to_string()),
        },
        ("state", connection.state.clone()),
        ("age", age(connection.age_ms / 1000)),
        ("idle", age(connection.idle_ms / 1000)),
        (
            "from client",
            format!("{}, {}", bytes(connection.bytes_up), rate(rates[2])),
        ),
        (
            "to client",
            format!("{}, {}", bytes(connection.bytes_down), rate(rates[3])),
        ),
    ]
}
