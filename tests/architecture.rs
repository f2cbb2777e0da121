//! The direction of the rooms, read from the sources (ARCHITECTURE.md; conventions 8, 12 and 15).
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One source file.
struct Source {
    /// The room: the first part of the path under `src`, without `.rs`.
    room: String,
    path: PathBuf,
    text: String,
}

impl Source {
    /// The lines of code that ship: no comments, and nothing below `#[cfg(test)]`, which conventions put last.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test_file = self.path.file_name().is_some_and(|name| name == "tests.rs" || name == "testing.rs");
        let mut lines = self.text.lines().enumerate().peekable();
        std::iter::from_fn(move || {
            let (index, line) = lines.next().filter(|_| !is_test_file)?;
            let inline_tests = lines.peek().is_some_and(|(_, next)| next.trim_start().starts_with("mod tests {"));
            if line.trim() == "#[cfg(test)]" && inline_tests { None } else { Some((index + 1, line)) }
        })
        .map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
    }

    /// Rooms that the code names, as `crate::room`, alone or in braces.
    fn rooms_used(&self) -> BTreeSet<String> {
        let code: String = self.code().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        let mut used = BTreeSet::new();
        for rest in code.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(group) => used.extend(group_heads(group)),
                None => _ = used.insert(identifier(rest)),
            }
        }
        used
    }
}

/// The first identifiers of the members of a `{...}` group, its closing brace included somewhere in `text`.
fn group_heads(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_head) = (1, Vec::new(), true);
    for (index, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            _ if at_head && !character.is_whitespace() => {
                heads.push(identifier(&text[index..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut pending, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).unwrap();
                let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
                let room = first.trim_end_matches(".rs").to_owned();
                sources.push(Source { room, text: fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    assert!(sources.len() > 20, "the sources are where this test looks for them");
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// Asserts that no file of these rooms has one of these texts in its code.
fn assert_nowhere(is_checked: impl Fn(&str) -> bool, texts: &[&str]) {
    for source in sources().iter().filter(|source| is_checked(&source.room)) {
        for (number, line) in source.code() {
            for text in texts {
                assert!(!line.contains(text), "{}:{number} has `{text}`: {line}", source.path.display());
            }
        }
    }
}

#[test]
fn the_core_uses_only_what_is_further_inside() {
    // worker -> turn -> auth -> stun -> address, and net -> address.
    let allowed: [(&str, &[&str]); 6] = [
        ("address", &[]),
        ("stun", &["address"]),
        ("auth", &["address", "stun"]),
        ("turn", &["address", "stun", "auth"]),
        ("net", &["address"]),
        ("offload", &["address"]),
    ];
    let sources = sources();
    for (room, allowed) in allowed {
        let files: Vec<_> = sources.iter().filter(|source| source.room == room).collect();
        assert!(!files.is_empty(), "the room `{room}` is there");
        for source in files {
            for used in source.rooms_used() {
                let inside = used == room || allowed.contains(&used.as_str());
                assert!(inside, "{} uses `{used}`, which `{room}` must not know", source.path.display());
            }
        }
    }
}

#[test]
fn only_the_outer_rooms_know_the_configuration() {
    // Conventions 8: "rooms never import `config`".
    for source in sources() {
        if !["config", "cli", "daemon", "main"].contains(&source.room.as_str()) {
            let used = source.rooms_used();
            assert!(!used.contains("config"), "{} uses `config`", source.path.display());
        }
    }
}

#[test]
fn nothing_inside_knows_the_rooms_outside() {
    // The shell of a worker is used by the daemon, which is used by the command line.
    for source in sources() {
        let outside: &[&str] = match source.room.as_str() {
            "main" | "cli" | "lib" => &[],
            "daemon" | "control" => &["cli"],
            // It reads the settings of every room.
            "config" => &["cli", "daemon"],
            _ => &["cli", "daemon", "control"],
        };
        for used in source.rooms_used() {
            assert!(!outside.contains(&used.as_str()), "{} uses `{used}`", source.path.display());
        }
    }
}

#[test]
fn the_core_knows_no_socket_no_clock_and_no_randomness_but_what_it_is_given() {
    let is_core = |room: &str| ["address", "stun", "auth", "turn"].contains(&room);
    assert_nowhere(
        is_core,
        &[
            "UdpSocket",
            "TcpStream",
            "TcpListener",
            "socket2",
            "tokio",
            "libc::",
            "Instant::now",
            "SystemTime",
            "getrandom",
            "thread_rng",
            "rand::rng()",
            "from_os_rng",
            "OsRng",
            "std::thread",
            "std::fs",
            "std::env",
            "println!",
            "eprintln!",
        ],
    );
}

#[test]
fn net_and_offload_never_parse_stun() {
    assert_nowhere(|room| room == "net" || room == "offload", &["crate::stun", "crate::turn", "crate::auth"]);
}

#[test]
fn unsafe_is_only_where_the_kernel_is() {
    let touches_kernel = |room: &str| room == "net" || room == "offload";
    for source in sources() {
        for (number, line) in source.code().filter(|_| !touches_kernel(&source.room)) {
            let words = line.split(|character: char| !character.is_alphanumeric() && character != '_');
            let is_unsafe = words.into_iter().any(|word| word == "unsafe");
            assert!(!is_unsafe, "{}:{number} has `unsafe`: {line}", source.path.display());
        }
    }
}

#[test]
fn files_are_short_enough_to_read() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines; conventions want about 500 at most", source.path.display());
    }
}

#[test]
fn nothing_is_dumped_or_left_to_do() {
    assert_nowhere(|_| true, &["dbg!(", "todo!(", "unimplemented!("]);
}

#[test]
fn the_compliance_table_names_code_and_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/compliance.md")).unwrap();
    let mut checked = 0;
    // Every second piece between backticks is code.
    for name in table.split('`').skip(1).step_by(2) {
        let (file, test) = match name.split_once("::") {
            Some((file, test)) => (file, Some(test)),
            None if name.ends_with(".rs") => (name, None),
            None => continue,
        };
        let candidates = match file.strip_suffix(".rs") {
            None if test == Some("test") => continue,
            None => vec![format!("tests/protocol/{file}.rs")],
            Some(_) => {
                ["src/", "tests/", "tests/protocol/", ""].iter().map(|folder| format!("{folder}{file}")).collect()
            }
        };
        let text = candidates.iter().find_map(|path| fs::read_to_string(root.join(path)).ok());
        let text = text.unwrap_or_else(|| panic!("docs/compliance.md names `{file}`, which is not there"));
        if let Some(test) = test {
            assert!(text.contains(&format!("fn {test}(")), "docs/compliance.md names `{name}`, which is not there");
        }
        checked += 1;
    }
    assert!(checked > 150, "the table is read: {checked} names");
}

#[test]
fn the_reader_of_sources_reads() {
    let source = |text: &str| Source { room: "turn".to_owned(), path: PathBuf::from("x.rs"), text: text.to_owned() };
    let used = |text: &str| source(text).rooms_used().into_iter().collect::<Vec<_>>();
    assert_eq!(used("use crate::stun::Message;\nfn f() { crate::auth::x() }"), ["auth", "stun"]);
    assert_eq!(used("use crate::{config::{A, b::C}, net, turn::x};"), ["config", "net", "turn"]);
    assert_eq!(used("// use crate::config;\nlet a = 1; // crate::net"), Vec::<String>::new());
    assert_eq!(used("fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::net;\n}"), Vec::<String>::new());
    assert_eq!(used("#[cfg(test)]\nmod testing;\nuse crate::net;"), ["net"]);
}
