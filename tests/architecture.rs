//! ARCHITECTURE.md against the sources: which module imports which, and that what its tables name is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../ARCHITECTURE.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file, without what stands behind `//` on its line.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are UTF-8");
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The modules that `code` names behind `crate::`, also in a group.
fn imported(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let behind = &code[at + "crate::".len()..];
        let names = match behind.strip_prefix('{') {
            Some(group) => {
                // Top level of the group only: what stands in inner braces belongs to a module named before them.
                let mut depth = 0;
                let end = group.find(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth < 0
                });
                let group = &group[..end.expect("the file compiles")];
                let mut depth = 0;
                let outer = group.split(move |c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth == 0 && c == ','
                });
                outer.collect::<Vec<_>>()
            }
            None => vec![behind],
        };
        for name in names {
            let name = name.trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            found.insert(&name[..end]);
        }
    }
    found
}

/// The lines of the page's block of imports: a module, and those it may name.
fn rule() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let block =
        PAGE.split("```imports\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the page has a rule");
    let lines = block.lines().map(|line| line.split_once(':').expect("a module, a colon, and what it may name"));
    lines
        .map(|(module, others)| (module, others.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()))
        .collect()
}

#[test]
fn modules_import_only_what_the_rule_allows() {
    let (rule, src) = (rule(), root().join("src"));
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in sources(&src) {
        let relative = path.strip_prefix(&src).expect("it was found there");
        let first = relative.iter().next().and_then(|name| name.to_str()).expect("names are UTF-8");
        let module = first.trim_end_matches(".rs");
        if ["lib", "docs", "bin"].contains(&module) {
            continue;
        }
        let Some((module, allowed)) = rule.get_key_value(module) else {
            wrong.push(format!("{}: the rule has no line for it", relative.display()));
            continue;
        };
        seen.insert(*module);
        let code = code(&path);
        for name in imported(&code) {
            // A macro, or an item that lib.rs exports, isn't a module.
            if rule.contains_key(name) && name != *module && !allowed.contains(name) {
                wrong.push(format!("{} imports {name}", relative.display()));
            }
        }
    }
    let listed: BTreeSet<_> = rule.keys().copied().collect();
    assert_eq!(wrong, [""; 0], "see ARCHITECTURE.md, \"Imports\"");
    assert_eq!(seen, listed, "the rule lists the modules that there are");
}

#[test]
fn the_rule_has_no_circle() {
    let mut left = rule();
    while !left.is_empty() {
        let present: BTreeSet<_> = left.keys().copied().collect();
        let before = left.len();
        left.retain(|_, others| others.iter().any(|other| present.contains(other)));
        assert!(left.len() < before, "these import each other: {:?}", left.keys());
    }
}

/// Rows whose cells name a type in backticks and the file it is declared in.
#[test]
fn tables_name_types_that_are_there() {
    let mut checked = 0;
    for row in PAGE.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let Some(at) = cells.iter().position(|cell| cell.starts_with("src/") && cell.ends_with(".rs")) else {
            continue;
        };
        let name = [cells[at - 1]].into_iter().find_map(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        let name = name.unwrap_or_else(|| panic!("no type beside the file: {row}"));
        let code = code(&root().join(cells[at]));
        let is_declared = ["struct", "enum", "trait"].iter().any(|kind| {
            code.match_indices(&format!("{kind} {name}"))
                .any(|(at, found)| !code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        });
        assert!(is_declared, "{} declares no {name}", cells[at]);
        checked += 1;
    }
    assert!(checked > 20, "{checked} rows were understood");
}

/// Paths of sources that the page names anywhere.
#[test]
fn the_page_names_files_that_are_there() {
    for name in PAGE.split(['`', ' ', '(', ')', ',', '|', ';', '\n']).filter(|word| word.starts_with("src/")) {
        assert!(root().join(name).exists(), "there is no {name}");
    }
}
