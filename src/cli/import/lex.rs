//! The text of a foreign configuration file as statements: words, and what stands in braces (or in a section) below them.
//!
//! One lexer for three dialects; they differ in what ends a statement, what begins a comment, and whether braces are
//! braces. It knows no directive, except those with which HAProxy begins a section.

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A statement a line; some of them begin a section that lasts to the next (HAProxy).
    Lines { sections: &'static [&'static str] },
    /// Statements end with `;`, blocks stand in braces (nginx).
    Semicolons,
    /// A statement a line, blocks stand in braces (keepalived).
    Braces,
}

/// One statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Number of the statement among all that were read: an index into [`Sources`].
    pub ix: u32,
    /// The statement's words, at least one.
    pub words: Vec<String>,
    /// What stands in its braces, or in its section.
    pub block: Vec<Statement>,
    /// Whether it has braces.
    pub braces: bool,
}

impl Statement {
    /// A word, or nothing.
    pub fn word(&self, n: usize) -> &str {
        self.words.get(n).map_or("", String::as_str)
    }
}

/// Where the statements stand.
#[derive(Debug, Default)]
pub struct Sources {
    /// Names of the files, in the order in which they were opened.
    pub files: Vec<String>,
    /// File and line of each statement, and its directive.
    statements: Vec<(usize, u32, String)>,
}

impl Sources {
    /// Adds a file.
    pub fn open(&mut self, name: String) -> usize {
        self.files.push(name);
        self.files.len() - 1
    }

    fn add(&mut self, file: usize, line: u32, directive: &str) -> u32 {
        self.statements.push((file, line, directive.chars().take(60).collect()));
        self.statements.len() as u32 - 1
    }

    /// File, line and directive of a statement.
    pub fn place(&self, ix: u32) -> (usize, u32, &str) {
        let (file, line, directive) = &self.statements[ix as usize];
        (*file, *line, directive)
    }
}

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 32;

/// A line and what is wrong with it.
pub type Malformed = (u32, String);

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

/// Reads a file that [`Sources::open`] knows.
pub fn lex(text: &str, style: Style, file: usize, sources: &mut Sources) -> Result<Vec<Statement>, Malformed> {
    let mut blocks: Vec<Vec<Statement>> = vec![Vec::new()];
    let mut words: Vec<String> = Vec::new();
    let mut began = 0;
    let mut tokens = Tokens {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        style,
        line: 1,
    };
    while let Some((line, token)) = tokens.next()? {
        let top = blocks.last_mut().expect("the outermost is never closed");
        match token {
            Token::Word(word) => {
                if words.is_empty() {
                    began = line;
                }
                words.push(word);
            }
            Token::End => end(top, &mut words, file, began, style, sources),
            Token::Open => {
                end(top, &mut words, file, began, Style::Semicolons, sources);
                match top.last_mut().filter(|last| !last.braces) {
                    Some(last) => last.braces = true,
                    None => return Err((line, "`{` without a directive before it".into())),
                }
                if blocks.len() == DEPTH_MAX {
                    return Err((line, format!("nested deeper than {DEPTH_MAX} levels")));
                }
                blocks.push(Vec::new());
            }
            Token::Close => {
                end(top, &mut words, file, began, style, sources);
                let block = blocks.pop().expect("there is always one");
                match blocks.last_mut().and_then(|outer| outer.last_mut()) {
                    Some(statement) => statement.block = block,
                    None => return Err((line, "`}` without a `{`".into())),
                }
            }
        }
    }
    let top = blocks.last_mut().expect("the outermost is never closed");
    end(top, &mut words, file, began, style, sources);
    match blocks.len() {
        1 => Ok(blocks.remove(0)),
        _ => {
            let open = blocks[blocks.len() - 2]
                .last()
                .expect("it was opened behind a statement");
            let (_, line, directive) = sources.place(open.ix);
            Err((line, format!("the `{{` of `{directive}` is never closed")))
        }
    }
}

/// Ends a statement, if one has begun.
fn end(
    into: &mut Vec<Statement>,
    words: &mut Vec<String>,
    file: usize,
    line: u32,
    style: Style,
    sources: &mut Sources,
) {
    if words.is_empty() {
        return;
    }
    let statement = Statement {
        ix: sources.add(file, line, &words[0]),
        words: std::mem::take(words),
        block: Vec::new(),
        braces: false,
    };
    match style {
        Style::Lines { sections } if !sections.contains(&statement.word(0)) => match into.last_mut() {
            Some(section) => section.block.push(statement),
            None => into.push(statement),
        },
        _ => into.push(statement),
    }
}

struct Tokens<'t> {
    rest: &'t str,
    style: Style,
    line: u32,
}

impl Tokens<'_> {
    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += u32::from(c == '\n');
        Some(c)
    }

    fn skip_line(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    fn braces(&self) -> bool {
        !matches!(self.style, Style::Lines { .. })
    }

    fn comment(&self, c: char) -> bool {
        c == '#' || c == '!' && self.style == Style::Braces
    }

    fn next(&mut self) -> Result<Option<(u32, Token)>, Malformed> {
        loop {
            let line = self.line;
            let Some(c) = self.rest.chars().next() else {
                return Ok(None);
            };
            let token = match c {
                '\n' if self.style != Style::Semicolons => Token::End,
                ';' if self.style == Style::Semicolons => Token::End,
                '{' if self.braces() => Token::Open,
                '}' if self.braces() => Token::Close,
                c if self.comment(c) => {
                    self.skip_line();
                    continue;
                }
                c if c.is_whitespace() => {
                    self.take();
                    continue;
                }
                _ => return self.word().map(|word| Some((line, Token::Word(word)))),
            };
            self.take();
            return Ok(Some((line, token)));
        }
    }

    fn word(&mut self) -> Result<String, Malformed> {
        let mut word = String::new();
        while let Some(c) = self.rest.chars().next() {
            let ends = match c {
                ';' => self.style == Style::Semicolons,
                '{' => self.braces() && !word.ends_with('$'),
                // The brace of `${name}` belongs to the word.
                '}' => self.braces() && !word.contains("${"),
                // nginx has comments between words only.
                '#' | '!' => self.comment(c) && self.style != Style::Semicolons,
                c => c.is_whitespace(),
            };
            if ends {
                break;
            }
            self.take();
            match c {
                '"' | '\'' => self.quoted(c, &mut word)?,
                '\\' if self.style != Style::Braces => word.extend(self.escaped()),
                c => word.push(c),
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, quote: char, word: &mut String) -> Result<(), Malformed> {
        let began = self.line;
        let escapes = quote == '"' || self.style == Style::Semicolons;
        loop {
            match self.take() {
                None => return Err((began, format!("the {quote} is never closed"))),
                Some('\n') if self.style != Style::Semicolons => {
                    return Err((began, format!("the {quote} is not closed in its line")));
                }
                Some(c) if c == quote => return Ok(()),
                Some('\\') if escapes => word.extend(self.escaped()),
                Some(c) => word.push(c),
            }
        }
    }

    /// What a backslash and the next character stand for.
    fn escaped(&mut self) -> Option<char> {
        if self.rest.starts_with('\n') {
            return None;
        }
        Some(match self.take()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'x' => {
                let code = self.rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match code {
                    Some(code) => {
                        self.rest = &self.rest[2..];
                        code as char
                    }
                    None => 'x',
                }
            }
            c => c,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(statements: &[Statement]) -> String {
        let one = |s: &Statement| match s.block.is_empty() && !s.braces {
            true => s.words.join("|"),
            false => format!("{}{{{}}}", s.words.join("|"), shown(&s.block)),
        };
        statements.iter().map(one).collect::<Vec<_>>().join(" ; ")
    }

    #[test]
    fn three_ways_to_write() {
        let lines = Style::Lines { sections: &["listen"] };
        for (style, text, expected) in [
            (
                lines,
                "listen a\n bind :80 # x\n acl b { src 1 }",
                "listen|a{bind|:80 ; acl|b|{|src|1|}}",
            ),
            (lines, "listen \"a b\" 'c\\d' e\\ f\\x41", "listen|a b|c\\d|e fA"),
            (lines, "stray\nlisten a\r\n x\r\n", "stray ; listen|a{x}"),
            (
                Style::Semicolons,
                "a { b c; d 'e;f' ${g}h; # no;\n}",
                "a{b|c ; d|e;f|${g}h}",
            ),
            (Style::Semicolons, "a\n b#c\n ;d{}", "a|b#c ; d{}"),
            (Style::Braces, "a b {\n c d ! no\n e\n{\n f }\n}\n", "a|b{c|d ; e{f}}"),
            (Style::Braces, "script \"</dev/tcp/1 # 2\"", "script|</dev/tcp/1 # 2"),
            (Style::Semicolons, "a b", "a|b"),
        ] {
            let read = lex(text, style, 0, &mut Sources::default()).unwrap();
            assert_eq!(shown(&read), expected, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_names_its_line() {
        let deep = "a {\n".repeat(100);
        for (style, text, line) in [
            (Style::Semicolons, "a;\n}", 2),
            (Style::Semicolons, "\n{ }", 2),
            (Style::Semicolons, "a { } { }", 1),
            (Style::Semicolons, "x;\na {\n b;\n", 2),
            (Style::Semicolons, "a;\nb \"c\n\n", 2),
            (Style::Braces, "a\nb 'c\nd'", 2),
            (Style::Braces, deep.as_str(), 32),
        ] {
            let wrong = lex(text, style, 0, &mut Sources::default()).unwrap_err();
            assert_eq!(wrong.0, line, "{text:.20} {wrong:?}");
        }
    }
}
