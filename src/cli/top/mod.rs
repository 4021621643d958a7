//! `weir top`: a live view in the terminal.
//!
//! One thread asks the running weir, another draws and reads keys, so that a slow answer never delays a key. What is shown
//! is decided in [`model`], which is pure; [`draw`] paints it.

pub mod draw;
pub mod model;
mod view;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use serde_json::{Value, json};

use super::client::{self, Client, Error, Options};
use super::table;
use crate::api::question::Question;
use model::{Model, Press, Sample, Wish};
use view::View;

/// Connections asked for; with more of them alive the busiest of these are shown.
const CONNECTIONS_MAX: usize = 2000;
/// How often keys are looked for.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// Watch rates, backends, VIPs and the busiest connections live.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time between samples.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one frame (80x24, or the size of the terminal) and end.
    #[arg(long)]
    once: bool,
    /// The view to begin with.
    #[arg(long, value_enum, default_value = "backends")]
    view: ViewArg,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ViewArg {
    Backends,
    Listeners,
    Connections,
    Vips,
    Sources,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval: Duration = text.parse::<humantime::Duration>().map_err(|e| e.to_string())?.into();
    match interval >= Duration::from_millis(100) {
        true => Ok(interval),
        false => Err("at least 100ms".into()),
    }
}

/// Runs until q; with `--once` or `--json` prints one frame or document.
pub fn run(args: Args) -> ExitCode {
    let mut model = Model::default();
    model.view = match args.view {
        ViewArg::Backends => View::Backends,
        ViewArg::Listeners => View::Listeners,
        ViewArg::Connections => View::Connections,
        ViewArg::Vips => View::Vips,
        ViewArg::Sources => View::Sources,
    };
    let once = args.once || args.options.json || !std::io::stdout().is_terminal();
    let result = match once {
        true => print_once(&args, &mut model),
        false => live(&args, &mut model),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => client::fail(&args.options, &error),
    }
}

/// Asks for everything that one frame shows.
fn ask(client: &mut Client) -> Result<Sample, Error> {
    let history: Value = client.ask(&Question::History { since: 0 })?;
    let row = |name: &str| {
        let row = history["series"]["total"][name].as_array();
        let number = |value: &Value| value.as_f64().unwrap_or(0.0) as u64;
        row.map(|row| row.iter().map(number).collect()).unwrap_or_default()
    };
    Ok(Sample {
        throughput: row("out"),
        new: row("new"),
        status: client.read(&Question::Status)?,
        connections: client.read(&Question::Conns { limit: CONNECTIONS_MAX })?,
    })
}

fn print_once(args: &Args, model: &mut Model) -> Result<(), Error> {
    let mut client = Client::connect(&args.options.socket)?;
    model.sample(Instant::now(), ask(&mut client)?);
    std::thread::sleep(args.interval);
    model.sample(Instant::now(), ask(&mut client)?);
    if args.options.json {
        let [new, refused, bytes_in, bytes_out] = model.totals();
        table::print_json(&json!({
            "rates": {"new": new, "refused": refused, "bytes_in": bytes_in, "bytes_out": bytes_out},
            "status": model.latest().status,
            "connections": model.latest().connections,
        }));
        return Ok(());
    }
    let (width, height) = match std::io::stdout().is_terminal() {
        true => ratatui::crossterm::terminal::size().unwrap_or((80, 24)),
        false => (80, 24),
    };
    // Nothing can go wrong when drawing to memory.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(frame, model, false));
    table::print(&frame_text(terminal.backend()));
    Ok(())
}

/// A frame as lines of text.
fn frame_text(backend: &TestBackend) -> String {
    let buffer = backend.buffer();
    let width = buffer.area.width.max(1) as usize;
    let lines = buffer.content.chunks(width).map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

fn live(args: &Args, model: &mut Model) -> Result<(), Error> {
    // Before the screen is taken: an error is then an error message.
    let first = Client::connect(&args.options.socket)?;
    let (sender, samples) = bounded(1);
    let (path, interval) = (args.options.socket.clone(), args.interval);
    std::thread::spawn(move || keep_asking(Some(first), &path, interval, &sender));
    let mut terminal = ratatui::init();
    let result = turn(&mut terminal, model, &samples, &args.options);
    ratatui::restore();
    result.map_err(|error| Error::Refused(format!("terminal: {error}").into()))
}

/// Ends when nobody listens any more.
fn keep_asking(mut client: Option<Client>, path: &Path, interval: Duration, samples: &Sender<Result<Sample, Error>>) {
    loop {
        let began = Instant::now();
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(path),
        };
        let sample = connected.and_then(|mut connected| {
            let sample = ask(&mut connected)?;
            client = Some(connected);
            Ok(sample)
        });
        if samples.send(sample).is_err() {
            return;
        }
        std::thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

fn turn(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    samples: &Receiver<Result<Sample, Error>>,
    options: &Options,
) -> std::io::Result<()> {
    let colours = !table::no_color();
    loop {
        terminal.draw(|frame| draw::draw(frame, model, colours))?;
        let mut changed = false;
        while !changed {
            changed = event::poll(KEYS_EVERY)?;
            for sample in samples.try_iter() {
                changed = true;
                match sample {
                    Ok(sample) => model.sample(Instant::now(), sample),
                    Err(error) => model.trouble = Some(error.to_string()),
                }
            }
        }
        while event::poll(Duration::ZERO)? {
            let Event::Key(key) = event::read()? else {
                continue;
            };
            let wish = match press(key) {
                Some(Press::Char('\u{3}')) => Wish::Quit,
                Some(press) => model.press(press),
                None => Wish::Nothing,
            };
            match wish {
                Wish::Nothing => {}
                Wish::Quit => return Ok(()),
                Wish::Kill(id) => {
                    let answer = client::ask(options, &Question::Kill { id });
                    let said = match answer {
                        Ok(said) => said.as_str().unwrap_or("done").to_string(),
                        Err(error) => error.to_string(),
                    };
                    model.say(Instant::now(), said);
                }
            }
        }
        model.tick(Instant::now());
    }
}

/// What a key means; Ctrl-C is U+0003.
fn press(key: KeyEvent) -> Option<Press> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Press::Char('\u{3}'),
        KeyCode::Char(c) => Press::Char(c),
        KeyCode::Enter => Press::Enter,
        KeyCode::Esc => Press::Escape,
        KeyCode::Backspace => Press::Backspace,
        KeyCode::Tab => Press::Tab,
        KeyCode::BackTab => Press::BackTab,
        KeyCode::Up => Press::Up,
        KeyCode::Down => Press::Down,
        KeyCode::PageUp => Press::PageUp,
        KeyCode::PageDown => Press::PageDown,
        KeyCode::Home => Press::Home,
        KeyCode::End => Press::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
