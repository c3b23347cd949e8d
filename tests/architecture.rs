//! The shape of the source tree: which module may know which, and how large a
//! file may grow.
//!
//! `src/lib.rs` lists the modules in dependency order; a file may refer only to
//! its own module and to those above it. `src/store.rs`, `src/link.rs` and `src/sink.rs` list
//! their folders in the same way. References are found in the source text
//! (`crate::...`, `$crate::...`, and `super::...` that climbs to the crate root, in
//! `use` and elsewhere, tests included), not in what a glob re-export hides.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MAX_PRODUCTION_LINES: usize = 450;

#[test]
fn modules_refer_only_to_modules_above_them() {
    let order = module_order(&read(&source().join("lib.rs")));
    assert!(order.len() > 10, "src/lib.rs declares {order:?} only: is its list of modules still understood?");

    let mut wrong = Vec::new();
    for file in source_files() {
        let module = module_path(&file);
        let Some(own) = module.first() else { continue };
        let Some(rank) = order.iter().position(|name| name == own) else {
            wrong.push(format!("{}: `{own}` is no `pub mod` of src/lib.rs", shown(&file)));
            continue;
        };
        for Reference { line, target } in references(&read(&file), module.len()) {
            let fault = match order.iter().position(|name| *name == target) {
                Some(other) if other <= rank => continue,
                Some(_) => format!("`{own}` must not know `{target}`, which stands below it in src/lib.rs"),
                None => format!("`{target}` is no module: name an item by the module that declares it"),
            };
            wrong.push(format!("{}:{line}: {fault}", shown(&file)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Files that name MQTT as a kind of sink: its own folders (`sink/mqtt`, `mqtt`, `config`), the
/// list of kinds, and what is about MQTT whatever sinks there are.
const KNOW_MQTT: [&str; 5] = [
    "src/cli/demo.rs",      // brings a broker
    "src/cli/subscribe.rs", // subscribes to one
    "src/model/command.rs", // where commands come from, as the log and the metrics name it
    "src/sink.rs",          // declares the module
    "src/sink/kinds.rs",    // the list
];

#[test]
fn a_kind_of_sink_is_named_in_its_own_files_and_in_the_lists_alone() {
    let (own, mut know) = (["src/sink/mqtt", "src/mqtt", "src/config"], BTreeSet::new());
    for file in source_files() {
        let text = read(&file);
        let production: Vec<&str> = text.lines().take(production_lines(&text)).collect();
        let tokens = tokens(&production.join("\n"));
        let at = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
        let named = (0..tokens.len()).any(|i| match (at(i), at(i + 1), at(i + 2)) {
            (".", "mqtt", _) | ("sink", "::", "mqtt") | ("mod", "mqtt", _) => true,
            (name, ..) => name.starts_with("Mqtt"),
        });
        let path = shown(&file);
        if named && path != "src/lib.rs" && !own.iter().any(|own| path.starts_with(own)) && !file.ends_with("tests.rs")
        {
            know.insert(path);
        }
    }
    assert_eq!(know, KNOW_MQTT.map(str::to_owned).into());
}

/// What comes in goes through `ingest`.
#[test]
fn no_link_knows_the_log() {
    let mut links = 0;
    for file in source_files().into_iter().filter(|file| shown(file).starts_with("src/link")) {
        links += 1;
        let text = read(&file);
        let production: Vec<&str> = text.lines().take(production_lines(&text)).collect();
        let found = references(&production.join("\n"), module_path(&file).len());
        let store = found.iter().find(|reference| reference.target == "store");
        assert!(store.is_none() || file.ends_with("tests.rs"), "{}:{}", shown(&file), store.map_or(0, |at| at.line));
    }
    assert!(links > 10, "{links} files");
}

#[test]
fn no_file_is_too_long_unsafe_or_named_mod_rs() {
    let mut wrong = Vec::new();
    for file in source_files() {
        let text = read(&file);
        let length = if file.ends_with("tests.rs") { 0 } else { production_lines(&text) };
        if length > MAX_PRODUCTION_LINES {
            wrong.push(format!("{}: {length} lines before its tests, at most {MAX_PRODUCTION_LINES}", shown(&file)));
        }
        for token in tokens(&text).iter().filter(|token| token.text == "unsafe") {
            wrong.push(format!("{}:{}: unsafe", shown(&file), token.line));
        }
        if file.ends_with("mod.rs") {
            wrong.push(format!("{}: write foo.rs beside foo/ instead", shown(&file)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A file and those in the folder of its name are one concept: what is between them is not
/// looked at.
#[test]
fn no_file_imports_another_in_a_circle() {
    assert_eq!(circle(&whole_tree()), None);
}

/// What the parent's own file declares may be used by all that it lists.
#[test]
fn folders_inside_store_link_and_sink_refer_only_to_folders_above_them() {
    let tree = whole_tree();
    let wrong: Vec<String> = ["store", "link", "sink"].iter().flat_map(|parent| out_of_order(&tree, parent)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_folder_that_refers_to_one_below_it_is_found_also_through_what_is_passed_on() {
    let parent = ("a", "pub mod low;\n\nmod high;\npub use high::part::P;\npub struct Own;");
    let low = ("a/low", "use super::Own;\nuse crate::b::B;");
    let files = [parent, low, ("a/low/x", ""), ("a/high", "mod part;"), ("a/high/part", "use crate::a::low::x;")];
    assert_eq!(out_of_order(&tree_of(&files), "a"), Vec::<String>::new());
    for reference in ["use crate::a::high::part::Q;", "fn f(_: super::super::P) {}", "use super::super::{Own, high};"] {
        let mut climbing = files;
        climbing[2].1 = reference;
        let found = out_of_order(&tree_of(&climbing), "a");
        assert_eq!(found.len(), 1, "{reference}: {found:?}");
        assert!(found[0].starts_with("a::low::x must not know a::high"), "{found:?}");
    }
    let mut hidden = files;
    hidden[0].1 = "mod low;";
    assert_eq!(out_of_order(&tree_of(&hidden), "a").len(), 2, "`high` and `high/part` are not listed");
}

#[test]
fn circles_are_found_also_through_what_a_module_passes_on() {
    let parent = ("a", "mod b;\nmod c;\nmod d;\npub use b::B;");
    let straight = [parent, ("a/b", "use super::c::C;"), ("a/c", "use super::d;"), ("a/d", "use super::Of;")];
    assert_eq!(circle(&tree_of(&straight)), None);
    let mut hidden = straight;
    hidden[3].1 = "fn d(_: super::B) {}";
    assert_eq!(circle(&tree_of(&hidden)).as_deref(), Some("a::b -> a::c -> a::d -> a::b"));
    hidden[3].1 = "#[cfg(test)]\nmod tests {\n    use crate::a::{x, b::B};\n}";
    assert_eq!(circle(&tree_of(&hidden)), None);
    hidden[3].1 = "use crate::{x, a::{y, b::B}};";
    assert!(circle(&tree_of(&hidden)).is_some());
}

#[test]
fn the_scanner_sees_references_and_nothing_else() {
    let snippet = r##"
//! crate::comment
use crate::model::{Seq, names};
use crate::{config::{self, Store}, r#clock as time, store};
pub(crate) fn f<'a>(_: &'a str, _: crate::wire::Frame) -> char {
    /* crate::outer /* crate::inner */ crate::still */
    let _ = "crate::string \" crate::more";
    let _ = r#"crate::raw " crate::raw"#;
    let _ = ('"', '\'', b'"', "", b"crate::bytes");
    super::super::mqtt::g(super::sibling::h(format!("{}", $crate::metrics::N)));
    crate::link::'x'
}
#[cfg(test)]
mod tests {
    use super::*;
    use super::super::super::sink;
    use super::super::sibling;
    use crate::*;
}
fn after() { super::super::{device::D, http} }
"##;
    let found: Vec<_> = references(snippet, 2).into_iter().map(|found| (found.line, found.target)).collect();
    let expected = [
        (3, "model"),
        (4, "config"),
        (4, "clock"),
        (4, "store"),
        (5, "wire"),
        (10, "mqtt"),
        (10, "metrics"),
        (11, "link"),
        (16, "sink"),
        (18, "*"),
        (20, "device"),
        (20, "http"),
    ];
    assert_eq!(found, expected.map(|(line, target)| (line, target.to_owned())));
}

#[test]
fn module_order_and_lengths_are_read_from_the_text() {
    let library = "//! pub mod comment;\npub mod a;\nmod hidden;\n\npub mod b;\npub(crate) mod c;\n";
    assert_eq!(module_order(library), ["a", "b"]);
    assert_eq!(submodules(library), ["a", "hidden", "b", "c"]);

    assert_eq!(module_path(&source().join("store/segment/column.rs")), ["store", "segment", "column"]);
    assert!(module_path(&source().join("main.rs")).is_empty());

    let with_tests = "one\n#[cfg(test)]\nuse two;\nthree\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(production_lines(with_tests), 4);
    assert_eq!(production_lines("one\ntwo\n"), 2);
}

/// A name directly below the crate root that the source text refers to.
struct Reference {
    line: usize,
    target: String,
}

struct Token {
    line: usize,
    text: String,
}

/// What a file refers to that lies `depth` modules deep.
fn references(text: &str, depth: usize) -> Vec<Reference> {
    let tokens = tokens(text);
    let at = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut braces = 0;
    let mut inline_modules = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match at(index) {
            "{" => {
                braces += 1;
                if index >= 2 && at(index - 2) == "mod" {
                    inline_modules.push(braces);
                }
            }
            "}" => {
                inline_modules.pop_if(|module| *module == braces);
                braces -= 1;
            }
            "crate" if at(index + 1) == "::" => targets(&tokens, index + 2, &mut found),
            "super" => {
                let mut climbed = 1;
                while at(index + 1) == "::" && at(index + 2) == "super" {
                    climbed += 1;
                    index += 2;
                }
                if climbed == depth + inline_modules.len() && at(index + 1) == "::" {
                    targets(&tokens, index + 2, &mut found);
                }
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// Adds the first name of each path that starts at `index`: one, or those of a `{...}` list.
fn targets(tokens: &[Token], index: usize, found: &mut Vec<Reference>) {
    let mut depth = 0;
    let mut starts = true;
    for token in &tokens[index..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," => starts = depth == 1,
            name if starts => {
                found.push(Reference { line: token.line, target: name.to_owned() });
                starts = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
}

/// The text of each module's file.
type Tree = BTreeMap<Vec<String>, String>;

fn whole_tree() -> Tree {
    let tree: Tree = source_files().iter().map(|file| (module_path(file), read(file))).collect();
    assert!(tree.len() > 100, "{} files", tree.len());
    tree
}

fn tree_of(files: &[(&str, &str)]) -> Tree {
    let module = |path: &str| path.split('/').map(str::to_owned).collect();
    files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect()
}

/// What in the folder `parent` refers to what stands below it in the list of `parent`'s own file,
/// or is missing there.
fn out_of_order(tree: &Tree, parent: &str) -> Vec<String> {
    let order = submodules(&tree[&[parent.to_owned()][..]]);
    let rank = |module: &[String]| order.iter().position(|name| *name == module[1]);
    let inside = |module: &[String]| module.len() > 1 && module[0] == parent;
    let mut wrong = Vec::new();
    for (module, imports) in imports(tree).into_iter().filter(|(module, _)| inside(module)) {
        let Some(own) = rank(module) else {
            wrong.push(format!("{} is not declared in src/{parent}.rs", module.join("::")));
            continue;
        };
        for other in imports.iter().filter(|other| inside(other) && rank(other) > Some(own)) {
            let (module, other) = (module.join("::"), other.join("::"));
            wrong.push(format!("{module} must not know {other}, which stands below it in src/{parent}.rs"));
        }
    }
    wrong
}

/// Modules that import each other in turn, if there are any.
fn circle(tree: &Tree) -> Option<String> {
    let imports = imports(tree);
    let mut done = BTreeSet::new();
    tree.keys().find_map(|module| walk(module, &imports, &mut Vec::new(), &mut done))
}

/// The modules that each module refers to, but for those within it and those that it is in.
fn imports(tree: &Tree) -> BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> {
    let paths: BTreeMap<&Vec<String>, Vec<Vec<String>>> =
        tree.iter().map(|(module, text)| (module, paths(module, text, tree))).collect();
    let passed_on: BTreeMap<Vec<String>, Vec<String>> =
        tree.iter().flat_map(|(module, text)| passed_on(module, text, tree)).collect();
    let imports = |module: &Vec<String>| -> BTreeSet<Vec<String>> {
        let found = paths[module].iter().filter_map(|path| home(path, tree, &passed_on));
        found.filter(|other| !other.starts_with(module) && !module.starts_with(other)).collect()
    };
    tree.keys().map(|module| (module, imports(module))).collect()
}

fn walk(
    module: &Vec<String>,
    imports: &BTreeMap<&Vec<String>, BTreeSet<Vec<String>>>,
    way: &mut Vec<String>,
    done: &mut BTreeSet<Vec<String>>,
) -> Option<String> {
    let name = module.join("::");
    if let Some(began) = way.iter().position(|passed| *passed == name) {
        return Some([&way[began..], &[name]].concat().join(" -> "));
    }
    if done.contains(module) {
        return None;
    }
    way.push(name);
    let found = imports[module].iter().find_map(|next| walk(next, imports, way, done));
    way.pop();
    done.insert(module.clone());
    found
}

/// The module whose file declares what a path names.
fn home(path: &[String], tree: &Tree, passed_on: &BTreeMap<Vec<String>, Vec<String>>) -> Option<Vec<String>> {
    let length = (1..=path.len()).rev().find(|length| tree.contains_key(&path[..*length]))?;
    match path.get(..=length).and_then(|name| passed_on.get(name)) {
        Some(from) => home(from, tree, passed_on),
        None => Some(path[..length].to_vec()),
    }
}

/// The names that a module passes on with `pub use`, and what they are there.
fn passed_on(module: &[String], text: &str, tree: &Tree) -> Vec<(Vec<String>, Vec<String>)> {
    let uses = text.lines().scan(false, |within, line| {
        let starts = line.starts_with("pub use ") || line.starts_with("pub(") && line.contains(") use ");
        let part = (*within || starts).then_some(line);
        *within = (*within || starts) && !line.ends_with(';');
        Some(part.unwrap_or_default())
    });
    let uses: Vec<_> = uses.collect();
    let name = |path: &Vec<String>| [module, &path[path.len() - 1..]].concat();
    paths(module, &uses.join("\n"), tree).into_iter().map(|path| (name(&path), path)).collect()
}

/// The paths below the crate's root in the production part of a module's text.
fn paths(module: &[String], text: &str, tree: &Tree) -> Vec<Vec<String>> {
    let production: Vec<&str> = text.lines().take(production_lines(text)).collect();
    let tokens = tokens(&production.join("\n"));
    let at = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let mut base = None;
        let begins = index == 0 || at(index - 1) != "::";
        match at(index) {
            "crate" if begins => base = Some(Vec::new()),
            "self" if begins => base = Some(module.to_vec()),
            "super" if begins => {
                let mut climbed = 1;
                while at(index + 1) == "::" && at(index + 2) == "super" {
                    climbed += 1;
                    index += 2;
                }
                base = module.len().checked_sub(climbed).map(|length| module[..length].to_vec());
            }
            name if begins && at(index + 1) == "::" => {
                let child = [module, &[name.to_owned()]].concat();
                if tree.contains_key(&child) {
                    base = Some(child);
                }
            }
            _ => {}
        }
        if let (Some(base), "::") = (base, at(index + 1)) {
            branches(&tokens, index + 2, &base, &mut found);
        }
        index += 1;
    }
    found
}

/// Adds the paths that go on at `index` behind `base`: one, or those of a `{...}` list.
/// Returns where they end.
fn branches(tokens: &[Token], mut index: usize, base: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let at = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    if at(index) == "{" {
        index += 1;
        while !matches!(at(index), "}" | "") {
            index = branches(tokens, index, base, found);
            index += usize::from(at(index) == ",");
        }
        return index + 1;
    }
    let path = if at(index) == "self" { base.to_vec() } else { [base, &[at(index).to_owned()]].concat() };
    if at(index + 1) == "::" {
        return branches(tokens, index + 2, &path, found);
    }
    found.push(path);
    // Another name is nobody else's concern.
    if at(index + 1) == "as" { index + 3 } else { index + 1 }
}

/// The identifiers and punctuation of Rust source: no comments, strings, characters or lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if next == '"' {
            string(rest)
        } else if next == '\'' {
            character_or_tick(rest)
        } else if next.is_alphanumeric() || next == '_' {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            match (&rest[..word], rest[word..].trim_start_matches('#').starts_with('"')) {
                ("r" | "br" | "cr", true) => word + raw_string(&rest[word..]),
                ("r", false) if rest[word..].starts_with('#') => word + 1,
                (name, _) => {
                    tokens.push(Token { line, text: name.to_owned() });
                    word
                }
            }
        } else if rest.starts_with("::") {
            tokens.push(Token { line, text: "::".to_owned() });
            2
        } else {
            if !next.is_whitespace() {
                tokens.push(Token { line, text: next.to_string() });
            }
            next.len_utf8()
        };
        let (passed, ahead) = rest.split_at(length);
        line += passed.matches('\n').count();
        rest = ahead;
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    loop {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            [_, ..] => at += 1,
            [] => return at,
        }
        if depth == 0 {
            return at;
        }
    }
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn raw_string(text: &str) -> usize {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let end = format!("\"{}", "#".repeat(hashes));
    text[hashes + 1..].find(&end).map_or(text.len(), |at| hashes + 1 + at + end.len())
}

fn character_or_tick(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escape, _))) => {
            let after = escape + 1;
            text[after..].find('\'').map_or(text.len(), |at| after + at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// The public modules in the order of their declaration.
fn module_order(library: &str) -> Vec<String> {
    let declared = tokens(library);
    declared
        .windows(4)
        .filter(|four| four[0].text == "pub" && four[1].text == "mod" && four[3].text == ";")
        .map(|four| four[2].text.clone())
        .collect()
}

/// All modules in the order of their declaration.
fn submodules(parent: &str) -> Vec<String> {
    let declared = tokens(parent);
    declared
        .windows(3)
        .filter(|three| three[0].text == "mod" && three[2].text == ";")
        .map(|three| three[1].text.clone())
        .collect()
}

/// `src/store/log.rs` is `[store, log]`; the crate's roots are `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(source()).expect("a file of src").with_extension("");
    let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts == ["lib"] || parts == ["main"] { Vec::new() } else { parts }
}

fn production_lines(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ")).unwrap_or(lines.len())
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn source_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![source()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a file of the project").display().to_string()
}
