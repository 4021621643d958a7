//! Entry point: parse the command line, run it, print one error chain, choose the exit code.

fn main() -> std::process::ExitCode {
    weir::cli::main()
}
