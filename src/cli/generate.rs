//! `weir generate man|completions DIRECTORY`: files for packages, made from the command line itself. Hidden: packagers
//! call it, users do not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Cli;

/// What `weir generate` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to make.
    what: What,
    /// Where to; made if it is missing.
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Manual pages: weir.1, one for each command, and weir.yaml.5.
    Man,
    /// Completions for bash, zsh and fish, under the names that these shells look for.
    Completions,
}

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    let made = fs::create_dir_all(&args.directory).and_then(|()| match args.what {
        What::Man => man(&args.directory),
        What::Completions => completions(&args.directory),
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir generate: {}: {error}", args.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn man(directory: &Path) -> io::Result<()> {
    let mut whole = Cli::command();
    whole.build();
    // There is no page for `help`.
    page(
        directory,
        "weir",
        &whole.clone().mut_subcommand("help", |help| help.hide(true)),
    )?;
    fs::write(directory.join("weir.yaml.5"), crate::config::manual())?;
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    for command in whole.get_subcommands().filter(shown) {
        let name = format!("weir-{}", command.get_name());
        let command = command.clone().display_name(name.clone());
        page(directory, &name, &command)?;
    }
    Ok(())
}

fn page(directory: &Path, name: &str, command: &Command) -> io::Result<()> {
    let mut text = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).section("1");
    man.render(&mut text)?;
    if name == "weir" {
        text.extend(MORE.as_bytes());
    }
    fs::write(directory.join(format!("{name}.1")), text)
}

/// What the command line does not know: roff, appended to weir.1.
const MORE: &str = r#".SH SIGNALS
.TP
HUP
Read the configuration again. What has not changed is not touched; a configuration that is refused changes nothing.
.TP
TERM, INT
Stop accepting, let connections finish within \fIshutdown_grace\fR, end. A second one ends at once.
.TP
USR2
Start the binary on disk, hand it every listening socket, let connections finish, end. A binary that does not get ready
changes nothing.
.SH "EXIT STATUS"
.TP
0
Good.
.TP
1
Failed at run time.
.TP
2
Wrong command line.
.TP
3
Configuration refused.
.SH FILES
.TP
/etc/weir/weir.yaml
Configuration: \fBweir.yaml\fR(5).
.TP
/run/weir/admin.sock
Admin socket, mode 0660.
.TP
/usr/share/doc/weir/docs/
Guides: configuration by task, operating, failover, the kernel engine, moving from other programs.
"#;

fn completions(directory: &Path) -> io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "weir", &mut text);
        let file = match shell {
            Shell::Zsh => "_weir",
            Shell::Fish => "weir.fish",
            _ => "weir",
        };
        fs::write(directory.join(file), text)?;
    }
    Ok(())
}
