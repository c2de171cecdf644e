//! ARCHITECTURE.md against the sources: which module imports which, which files import each other in a circle, and
//! whether what the tables name is there.

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

/// The tokens of Rust code: identifiers, `::`, and single characters. Comments, strings, characters, numbers and
/// lifetimes are left out.
fn tokens(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        let raw = rest.trim_start_matches(['b', 'r']).trim_start_matches('#');
        if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
        } else if (rest.starts_with('r') || rest.starts_with("br")) && raw.starts_with('"') {
            let opening = rest.len() - raw.len();
            let end = format!("\"{}", "#".repeat(rest[..opening].matches('#').count()));
            length = opening + 1 + raw[1..].find(&end).expect("the string ends") + end.len();
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let is_end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                is_end
            });
            length = end.expect("the string ends") + 2;
        } else if first == '\'' {
            let mut after = rest.char_indices().skip(1);
            let (_, second) = after.next().expect("the file compiles");
            let third = after.next().map_or(rest.len(), |(at, _)| at);
            length = if second == '\\' {
                // The escaped character may itself be a quote.
                3 + rest[3..].find('\'').expect("the character ends") + 1
            } else if rest[third..].starts_with('\'') {
                third + 1
            } else {
                1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1)
            };
        } else if is_word(first) {
            length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            if !first.is_ascii_digit() {
                found.push(&rest[..length]);
            }
        } else if !first.is_whitespace() {
            length = if rest.starts_with("::") { 2 } else { length };
            found.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    found
}

/// A path in the code of a module. `name` is the name that an import binds, `*` if it imports everything.
#[derive(Debug)]
struct Named {
    path: Vec<String>,
    name: Option<String>,
    /// The import is for other modules as well.
    public: bool,
    /// The path stands in code for tests, or serves the documentation alone.
    aside: bool,
}

/// A module of the crate: the file that it stands in, its child modules, and the paths that its code names.
#[derive(Debug, Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    named: Vec<Named>,
}

/// The modules of the crate by their paths; that of the crate itself is empty.
#[derive(Default)]
struct Crate(BTreeMap<Vec<String>, Module>);

/// What a path of the code leads to.
enum Target {
    Module(Vec<String>),
    /// The files that declare an item; more than one if it depends on the configuration.
    Item(BTreeSet<String>),
    /// Nothing of this crate.
    Foreign,
}

impl Crate {
    /// Reads the library's sources.
    fn read() -> Self {
        let src = root().join("src");
        let mut this = Self::default();
        for path in sources(&src) {
            let relative = path.strip_prefix(&src).expect("it was found there");
            let file = relative.to_str().expect("names are UTF-8").replace('\\', "/");
            if file.starts_with("bin/") || file.starts_with("docs/") {
                continue;
            }
            let mut module: Vec<_> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            module.pop_if(|last| ["mod", "lib"].contains(&last.as_str()));
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            let aside = file.ends_with("/tests.rs") || file.contains("/models/");
            this.add(&file, &module, &tokens(&text), aside);
        }
        this
    }

    /// Adds what the tokens of `module` name, and its inline modules.
    fn add(&mut self, file: &str, module: &[String], tokens: &[&str], aside: bool) {
        let mut this = Module { file: file.to_owned(), ..Module::default() };
        let mut at = 0;
        // Whether the attributes before the next item keep it for tests or the documentation, and whether it is public.
        let (mut kept, mut public) = (false, false);
        while at < tokens.len() {
            match tokens[at..] {
                ["#", "[", ..] | ["#", "!", "[", ..] => {
                    let open = at + usize::from(tokens[at + 1] == "!") + 1;
                    let end = block_end(tokens, open);
                    let attribute = &tokens[open + 1..end - 1];
                    let is_for = |what| attribute.contains(&what) && !attribute.contains(&"not");
                    kept |= attribute[0] == "cfg" && (is_for("test") || is_for("doc"));
                    at = end;
                    continue;
                }
                ["pub", ..] => {
                    public = true;
                    at = if tokens[at + 1] == "(" { block_end(tokens, at + 1) } else { at + 1 };
                    continue;
                }
                ["mod", name, ";", ..] => {
                    this.children.insert(name.to_owned());
                    at += 3;
                }
                ["mod", name, "{", ..] => {
                    this.children.insert(name.to_owned());
                    let inner: Vec<_> = module.iter().cloned().chain([name.to_owned()]).collect();
                    let end = block_end(tokens, at + 2);
                    self.add(file, &inner, &tokens[at + 3..end - 1], aside || kept);
                    at = end;
                }
                // Not the bound `use<>` of an `impl Trait`.
                ["use", next, ..] if next != "<" => {
                    let end = at + tokens[at..].iter().position(|token| *token == ";").expect("the file compiles");
                    let begun = this.named.len();
                    import(&tokens[at + 1..end], &[], aside || kept, &mut this.named);
                    this.named[begun..].iter_mut().for_each(|named| named.public = public);
                    at = end + 1;
                }
                _ if kept => {
                    // The item: up to its semicolon, or with its first block.
                    let end = (at..tokens.len()).find(|at| [";", "{", ","].contains(&tokens[*at])).expect("it has one");
                    let end = if tokens[end] == "{" { block_end(tokens, end) } else { end + 1 };
                    while at < end {
                        at += path(&tokens[at..end], true, &mut this.named);
                    }
                }
                _ => at += path(&tokens[at..], aside, &mut this.named),
            }
            (kept, public) = (false, false);
        }
        self.0.insert(module.to_vec(), this);
    }

    /// What `path` leads to in the code of `module`.
    fn resolve(&self, module: &[String], path: &[String]) -> Target {
        let here = &self.0[module];
        let (first, rest) = path.split_first().expect("a path has a first segment");
        match first.as_str() {
            "crate" => self.walk(&[], rest),
            "self" => self.walk(module, rest),
            "super" => {
                let mut outer = module;
                let mut rest = path;
                while let [first, behind @ ..] = rest
                    && first == "super"
                {
                    outer = outer.split_last().expect("the file compiles").1;
                    rest = behind;
                }
                self.walk(outer, rest)
            }
            name if here.children.contains(name) || here.named.iter().any(|named| named.binds(name)) => {
                self.walk(module, path)
            }
            _ => Target::Foreign,
        }
    }

    /// What `path` leads to from within `module`, whose own names come first.
    fn walk(&self, module: &[String], path: &[String]) -> Target {
        let Some((name, rest)) = path.split_first() else { return Target::Module(module.to_vec()) };
        let here = &self.0[module];
        if here.children.contains(name) {
            let child: Vec<_> = module.iter().chain([name]).cloned().collect();
            return self.walk(&child, rest);
        }
        let mut files = BTreeSet::new();
        let own = here.named.iter().filter(|named| named.binds(name));
        let globs = here.named.iter().filter(|named| named.binds("*"));
        for named in own {
            match self.resolve(module, &named.path) {
                Target::Module(module) => match self.walk(&module, rest) {
                    Target::Item(found) => files.extend(found),
                    target => return target,
                },
                Target::Item(found) => files.extend(found),
                Target::Foreign => {}
            }
        }
        if files.is_empty() {
            for glob in globs {
                if let Target::Module(source) = self.resolve(module, &glob.path)
                    && self.0[&source].named.iter().any(|named| named.public && named.binds(name))
                    && let Target::Item(found) = self.walk(&source, path)
                {
                    files.extend(found);
                }
            }
        }
        if files.is_empty() {
            files.insert(here.file.clone());
        }
        Target::Item(files)
    }

    /// The imports from file to file, without those for tests and for the documentation.
    fn arrows(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let mut arrows: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (path, module) in &self.0 {
            let behind = arrows.entry(&module.file).or_default();
            for named in module.named.iter().filter(|named| !named.aside) {
                match self.resolve(path, &named.path) {
                    Target::Item(files) => behind.extend(files),
                    // A module with children is a facade: what counts is the paths that lead through it.
                    Target::Module(target) if self.0[&target].children.is_empty() || named.binds("*") => {
                        behind.insert(self.0[&target].file.clone());
                    }
                    Target::Module(_) | Target::Foreign => {}
                }
            }
            behind.remove(&module.file);
        }
        arrows
    }

    /// The top-level modules that `module` names, by the first segment of the path; an item of the crate's root counts
    /// as the module that lib.rs takes it from.
    fn named_by(&self, module: &[String]) -> BTreeSet<String> {
        let lib = &self.0[&[][..]];
        let mut found = BTreeSet::new();
        for named in &self.0[module].named {
            let mut inner = named.path.iter().map(String::as_str).peekable();
            let mut outer = module.len();
            match inner.peek() {
                Some(&"crate") => {
                    inner.next();
                    outer = 0;
                }
                Some(&"super") => {
                    while inner.next_if_eq(&"super").is_some() {
                        outer -= 1;
                    }
                }
                _ => continue,
            }
            let Some(first) = inner.next().filter(|_| outer == 0) else { continue };
            if lib.children.contains(first) {
                found.insert(first.to_owned());
            } else if let Some(named) = lib.named.iter().find(|named| named.binds(first)) {
                found.extend(named.path.iter().find(|segment| lib.children.contains(*segment)).cloned());
            }
        }
        found
    }
}

impl Named {
    fn binds(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name) && self.path != [name]
    }
}

/// The index behind the bracket that closes the one at `open`.
fn block_end(tokens: &[&str], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(["(", "[", "{"].contains(token)) - i32::from([")", "]", "}"].contains(token));
        if depth == 0 {
            return at + 1;
        }
    }
    panic!("the file compiles");
}

/// Notes what the tree of a `use` imports, behind the segments of `outer`.
fn import(tree: &[&str], outer: &[String], aside: bool, named: &mut Vec<Named>) {
    let mut path = outer.to_vec();
    let mut at = 0;
    while at < tree.len() {
        match tree[at..] {
            ["{", ..] => {
                let mut begin = at + 1;
                let end = block_end(tree, at) - 1;
                while begin < end {
                    let mut depth = 0;
                    let comma = tree[begin..end].iter().position(|token| {
                        depth += i32::from(*token == "{") - i32::from(*token == "}");
                        depth == 0 && *token == ","
                    });
                    let stop = comma.map_or(end, |comma| begin + comma);
                    import(&tree[begin..stop], &path, aside, named);
                    begin = stop + 1;
                }
                return;
            }
            ["*", ..] => return named.push(Named { path, name: Some("*".to_owned()), public: false, aside }),
            ["self"] if !outer.is_empty() => {}
            ["as", name] => return named.push(Named { path, name: Some(name.to_owned()), public: false, aside }),
            ["::", ..] => {}
            [segment, ..] => path.push(segment.to_owned()),
            [] => unreachable!("the loop has ended"),
        }
        at += 1;
    }
    let name = path.last().cloned();
    named.push(Named { path, name, public: false, aside });
}

/// Notes the path at the beginning of `tokens`, if there is one. Returns the number of its tokens, at least one.
fn path(tokens: &[&str], aside: bool, named: &mut Vec<Named>) -> usize {
    let is_segment = |token: &&str| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let mut length = usize::from(tokens.first().is_some_and(is_segment));
    while length > 0 && tokens.get(length) == Some(&"::") && tokens.get(length + 1).is_some_and(is_segment) {
        length += 2;
    }
    if length > 1 {
        let path = tokens[..length].iter().step_by(2).map(|segment| (*segment).to_owned()).collect();
        named.push(Named { path, name: None, public: false, aside });
    }
    length.max(1)
}

/// The lines of a fenced block of the page.
fn block(kind: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("```{kind}\n");
    let (_, rest) = PAGE.split_once(&fence).expect("the page has the block");
    rest.split("```").next().unwrap_or_default().lines()
}

/// The lines of the page's block of imports: a module, and those it may name.
fn rule() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let lines = block("imports").map(|line| line.split_once(':').expect("a module, a colon, and what it may name"));
    lines
        .map(|(module, others)| (module, others.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()))
        .collect()
}

#[test]
fn modules_import_only_what_the_rule_allows() {
    let (rule, sources) = (rule(), Crate::read());
    let mut wrong = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (path, module) in &sources.0 {
        let Some(top) = path.first() else { continue };
        let Some((top, allowed)) = rule.get_key_value(top.as_str()) else {
            wrong.insert(format!("{}: the rule has no line for it", module.file));
            continue;
        };
        seen.insert(*top);
        for name in sources.named_by(path) {
            if rule.contains_key(name.as_str()) && name != *top && !allowed.contains(name.as_str()) {
                wrong.insert(format!("{} imports {name}", module.file));
            }
        }
    }
    let listed: BTreeSet<_> = rule.keys().copied().collect();
    assert_eq!(wrong, BTreeSet::new(), "see ARCHITECTURE.md, \"Imports\"");
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

/// The files that import each other in circles, a set for each.
fn circles(arrows: &BTreeMap<&str, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &str| {
        let mut reached = BTreeSet::new();
        let mut ahead: Vec<_> = arrows[from].iter().collect();
        while let Some(file) = ahead.pop() {
            if reached.insert(file.as_str()) {
                ahead.extend(&arrows[file.as_str()]);
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = arrows.keys().map(|file| (*file, reached(file))).collect();
    let in_circles = reached.iter().filter(|(file, behind)| behind.contains(*file));
    in_circles
        .map(|(file, behind)| {
            behind.iter().filter(|other| reached[*other].contains(file)).map(ToString::to_string).collect()
        })
        .collect()
}

/// A line of the page's block of circles names a folder, the files that may import each other in it, and the reason.
#[test]
fn files_import_each_other_in_no_circle_but_the_listed_ones() {
    let sources = Crate::read();
    let arrows = sources.arrows();
    let listed: Vec<BTreeSet<String>> = block("circles")
        .map(|line| {
            let (files, reason) = line.split_once('#').expect("each line gives its reason behind a #");
            assert!(!reason.trim().is_empty(), "this line gives no reason: {line}");
            let (folder, names) = files.split_once(':').expect("a folder, a colon, and its files");
            let folder = folder.strip_prefix("src/").expect("the folder is in src");
            names.split(',').map(|name| format!("{folder}/{}", name.trim())).collect()
        })
        .collect();
    let found = circles(&arrows);
    let mut wrong = String::new();
    for circle in found.iter().filter(|circle| !listed.iter().any(|allowed| circle.is_subset(allowed))) {
        wrong += "these files import each other in a circle:\n";
        for file in circle {
            let others: Vec<_> = arrows[file.as_str()].intersection(circle).map(String::as_str).collect();
            wrong += &format!("  {file} imports {}\n", others.join(", "));
        }
    }
    for allowed in listed.iter().filter(|allowed| !found.iter().any(|circle| circle.is_subset(allowed))) {
        wrong += &format!("there is no circle any more, delete its line: {allowed:?}\n");
    }
    assert!(wrong.is_empty(), "see ARCHITECTURE.md, \"Imports\"\n{wrong}");
}

/// What the two tests of imports rest on.
#[test]
fn imports_are_read_as_the_compiler_reads_them() {
    let mut sample = Crate::default();
    let mut add = |file: &str, text: &str| {
        let module: Vec<_> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        let module: Vec<_> = module.into_iter().filter(|name| !["mod", "lib"].contains(&name.as_str())).collect();
        sample.add(file, &module, &tokens(text), false);
    };
    add("lib.rs", "mod a; pub mod b; mod c; pub use self::b::{Thing, inner::Other as Renamed};");
    add("a/mod.rs", "mod child; mod other; pub(crate) use self::child::Item; struct Own;");
    add(
        "a/child.rs",
        r##"
        // use crate::b::Comment;
        const A: (&str, &str, char, char) = ("use crate::b::X;"", r#"crate::b"x"#, '"', ''');
        use super::{super::c::{self, Leaf}, other::*};
        #[cfg(test)]
        mod tests { use super::*; use crate::Thing; }
        fn f<'a>() { crate::Renamed::new::<'a>(c::free()); }
        "##,
    );
    add("a/other.rs", "use super::Item; #[cfg(doc)] use super::Own; #[cfg(test)] pub(super) fn f() { super::Own; }");
    add("b/mod.rs", "mod inner; pub use inner::Thing; use crate::a;");
    add("b/inner.rs", "pub struct Thing; pub struct Other; fn f() { std::a::b(); }");
    add("c.rs", "pub use real::*; mod real { pub use foreign::Leaf; }");
    let arrows = sample.arrows();
    let behind = |file: &str| arrows[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(behind("a/child.rs"), ["a/other.rs", "b/inner.rs", "c.rs"]);
    assert_eq!(behind("a/mod.rs"), ["a/child.rs"], "a facade imports what it exports");
    assert_eq!(behind("a/other.rs"), ["a/child.rs"], "an import through a facade is one of the file behind it");
    assert_eq!(behind("b/mod.rs"), ["b/inner.rs"]);
    assert_eq!(behind("lib.rs"), ["b/inner.rs"]);
    let circle = ["a/child.rs", "a/other.rs"].map(str::to_owned);
    assert_eq!(circles(&arrows), [circle.into()].into());
    let named = |module: &[&str]| sample.named_by(&module.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(named(&["a", "child"]), ["b", "c"].map(str::to_owned).into());
    assert_eq!(named(&["a", "child", "tests"]), ["b".to_owned()].into(), "code for tests keeps the rule, too");
    assert_eq!(named(&["b"]), ["a".to_owned()].into());
}

/// The code of a file, without what stands behind `//` on its line.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are UTF-8");
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
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
    for name in PAGE.split(['`', ' ', '(', ')', ',', '|', ';', ':', '\n']).filter(|word| word.starts_with("src/")) {
        assert!(root().join(name).exists(), "there is no {name}");
    }
}

/// The names that `src/fanout/mod.rs` lets the rest of the crate use, apart from those for tests.
#[test]
fn the_fan_out_shows_at_most_ten_names() {
    let code = code(&root().join("src/fanout/mod.rs"));
    let mut names = BTreeSet::new();
    let mut is_for_tests = false;
    for line in code.lines() {
        // Items of the file begin at its margin; their methods and fields don't.
        if let Some(item) = line.strip_prefix("pub(crate) ").filter(|_| !is_for_tests) {
            let item = item.trim_end_matches(';');
            match item.strip_prefix("use ").and_then(|path| path.rsplit_once("::")) {
                Some((_, group)) => {
                    let group = group.trim_matches(['{', '}']);
                    names.extend(group.split(',').map(|name| name.trim().to_owned()));
                }
                None => names.extend(item.split([' ', '<', '(']).nth(1).map(str::to_owned)),
            }
        }
        is_for_tests = line == "#[cfg(test)]";
    }
    assert!(names.contains("Fanout") && names.contains("Outbox"), "{names:?}");
    assert!(names.len() <= 10, "{} names: {names:?}", names.len());
}
