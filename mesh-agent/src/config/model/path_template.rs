//! Path templates (`envoy.path.match.uri_template`, `envoy.path.rewrite.uri_template`).
//!
//! `*` stands for one segment or a part of it, `**` for any number of segments, and `{name}`,
//! `{name=pattern}` remember what they stood for, so that a rewrite can name it.

use std::sync::Arc;

use regex_automata::meta::Regex;

/// Most variables of a template (Envoy: `kPatternMatchingMaxVariablesPerUrl`).
const MAX_VARIABLES: usize = 5;
/// Longest name of a variable (Envoy: `kPatternMatchingMaxVariableNameLen`).
const MAX_NAME: usize = 16;
/// What may stand in a segment (RFC 3986).
const SEGMENT: &str = "a-zA-Z0-9\\-._~%!$&'()*+,;:@=";

/// A template that paths are matched against as a whole, the query left out.
#[derive(Debug, Clone)]
pub struct PathTemplate {
    /// As written.
    pub source: Arc<str>,
    regex: Regex,
    /// Names of variables; the first one is the regex's first group.
    variables: Vec<Arc<str>>,
}

impl PathTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: &str) -> Result<Self, String> {
        let mut parser = Parser {
            rest: source,
            regex: String::from("^"),
            variables: Vec::new(),
            ended: false,
        };
        parser.path()?;
        parser.regex.push('$');
        let regex = Regex::new(&parser.regex).map_err(|error| error.to_string())?;
        Ok(Self {
            source: source.into(),
            regex,
            variables: parser.variables,
        })
    }

    /// Whether a path matches.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

struct Parser<'s> {
    rest: &'s str,
    regex: String,
    variables: Vec<Arc<str>>,
    /// `**` was met: only a literal may follow.
    ended: bool,
}

impl Parser<'_> {
    fn path(&mut self) -> Result<(), String> {
        if !self.rest.starts_with('/') {
            return Err("must begin with /".into());
        }
        while let Some(rest) = self.rest.strip_prefix('/') {
            self.rest = rest;
            self.regex.push('/');
            let end = self.segment_end();
            let (segment, rest) = self.rest.split_at(end);
            if segment.is_empty() && !rest.is_empty() {
                return Err("has an empty segment".into());
            }
            self.segment(segment)?;
            self.rest = rest;
        }
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(format!("cannot be read from {:?} on", self.rest))
        }
    }

    /// Where the segment ends: a slash within braces is part of it.
    fn segment_end(&self) -> usize {
        let mut within = false;
        for (at, character) in self.rest.char_indices() {
            match character {
                '{' => within = true,
                '}' => within = false,
                '/' if !within => return at,
                _ => {}
            }
        }
        self.rest.len()
    }

    fn segment(&mut self, mut segment: &str) -> Result<(), String> {
        while !segment.is_empty() {
            if let Some(rest) = segment.strip_prefix("**") {
                self.operator(true)?;
                segment = rest;
            } else if let Some(rest) = segment.strip_prefix('*') {
                self.operator(false)?;
                segment = rest;
            } else if let Some(rest) = segment.strip_prefix('{') {
                let (inside, rest) = rest.split_once('}').ok_or("has a { without }")?;
                self.variable(inside)?;
                segment = rest;
            } else {
                let end = segment.find(['*', '{']).unwrap_or(segment.len());
                let (text, rest) = segment.split_at(end);
                self.literal(text)?;
                segment = rest;
            }
        }
        Ok(())
    }

    fn operator(&mut self, any_depth: bool) -> Result<(), String> {
        if self.ended {
            return Err("** must be the last operator".into());
        }
        self.ended = any_depth;
        self.regex.push_str(&if any_depth {
            format!("[{SEGMENT}/]*")
        } else {
            format!("[{SEGMENT}]+")
        });
        Ok(())
    }

    fn literal(&mut self, text: &str) -> Result<(), String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
        if let Some(wrong) = text.chars().find(|c| !allowed(*c)) {
            return Err(format!("{wrong:?} must not stand in a template"));
        }
        self.regex.push_str(&regex_escape(text));
        Ok(())
    }

    fn variable(&mut self, inside: &str) -> Result<(), String> {
        let (name, pattern) = match inside.split_once('=') {
            Some((_, "")) => return Err(format!("variable {inside:?} has an empty pattern")),
            Some((name, pattern)) => (name, pattern),
            None => (inside, "*"),
        };
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !first
            || name.len() > MAX_NAME
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        {
            return Err(format!(
                "{name:?} is no name of a variable: 1 to {MAX_NAME} letters, digits and _, a letter first"
            ));
        }
        if self.variables.iter().any(|known| **known == *name) {
            return Err(format!("variable {name:?} stands twice"));
        }
        if self.variables.len() == MAX_VARIABLES {
            return Err(format!("has more than {MAX_VARIABLES} variables"));
        }
        self.variables.push(name.into());
        self.regex.push('(');
        for (i, segment) in pattern.split('/').enumerate() {
            if i > 0 {
                self.regex.push('/');
            }
            match segment {
                "**" => self.operator(true)?,
                "*" => self.operator(false)?,
                "" => return Err(format!("variable {name:?} has an empty segment")),
                text => self.literal(text)?,
            }
        }
        self.regex.push(')');
        Ok(())
    }
}

fn regex_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if !character.is_ascii_alphanumeric() && !"_%!&',;:@=~".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// What a matched path becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRewrite(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Arc<str>),
    /// A group of the template's regex.
    Group(usize),
}

impl TemplateRewrite {
    /// Reads a rewrite, which names variables of `template`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: &str, template: &PathTemplate) -> Result<Self, String> {
        if !source.starts_with('/') {
            return Err("must begin with /".into());
        }
        if source.contains("//") {
            return Err("has an empty segment".into());
        }
        let mut pieces = Vec::new();
        let mut rest = source;
        while !rest.is_empty() {
            let (text, after) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if !text.is_empty() {
                pieces.push(Piece::Text(text.into()));
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'))
                .ok_or("has a brace without its other half")?;
            let index = template
                .variables
                .iter()
                .position(|known| **known == *name)
                .ok_or_else(|| format!("{name:?} is no variable of the path_match_policy"))?;
            pieces.push(Piece::Group(index + 1));
            rest = after;
        }
        Ok(Self(pieces))
    }

    /// The new path; `None`: the path does not match.
    pub fn apply(&self, template: &PathTemplate, path: &str) -> Option<String> {
        let mut captures = template.regex.create_captures();
        template.regex.captures(path, &mut captures);
        captures.get_match()?;
        let mut out = String::with_capacity(path.len());
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Group(group) => out.push_str(&path[captures.get_group(*group)?.range()]),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, path, wanted) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", false),
            ("/a/*", "/a/x.y", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a/x/y", false),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/x/y", true),
            ("/**.mpd", "/content/india/m.mpd", true),
            ("/**.mpd", "/content/mmpd", false),
            ("/v/{id}/{rest=**}", "/v/1/x/y", true),
            ("/v/{id=c/*}", "/v/c/1", true),
            ("/v/{id=c/*}", "/v/d/1", false),
        ] {
            let template = PathTemplate::new(template).unwrap();
            assert_eq!(template.matches(path), wanted, "{} {path}", template.source);
        }
    }

    #[test]
    fn what_is_no_template_is_told() {
        for wrong in [
            "",
            "a",
            "//",
            "/a//b",
            "/{",
            "/{}",
            "/{1a}",
            "/{a}/{a}",
            "/{a=}",
            "/**/*",
            "/a b",
            "/a?b",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/{abcdefghijklmnopq}",
        ] {
            assert!(PathTemplate::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rewrite_names_variables() {
        let template = PathTemplate::new("/v/{id}/{rest=**}").unwrap();
        let rewrite = TemplateRewrite::new("/{rest}/of/{id}", &template).unwrap();
        let apply = |path| rewrite.apply(&template, path);
        assert_eq!(apply("/v/1/x/y").as_deref(), Some("/x/y/of/1"));
        assert_eq!(apply("/w"), None);
        for wrong in ["x", "/{other}", "/{id", "/id}", "//"] {
            assert!(TemplateRewrite::new(wrong, &template).is_err(), "{wrong}");
        }
    }
}
