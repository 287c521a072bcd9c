//! From the text of a condition to its tree: read by precedence as CEL has it, with the type of every part known.

use super::super::matching::{PatternError, compile_pattern};
use super::super::value::near;
use super::{Attribute, Comparison, Condition, Expr, MAX_BYTES, TextTest, Wrong};

/// Deepest nesting.
const MAX_DEPTH: usize = 24;
/// Most items of a list.
const MAX_ITEMS: usize = 64;
const ATTRIBUTES: [(&str, Attribute, Type); 8] = [
    ("request.method", Attribute::Method, Type::Text),
    ("request.path", Attribute::Path, Type::Text),
    ("request.url_path", Attribute::Path, Type::Text),
    ("request.auth.principal", Attribute::User, Type::Text),
    ("source.principal", Attribute::Principal, Type::Text),
    ("source.namespace", Attribute::Namespace, Type::Text),
    ("source.cluster", Attribute::Cluster, Type::Text),
    ("connection.mtls", Attribute::Mtls, Type::Bool),
];
const METHODS: [&str; 6] = ["startsWith", "endsWith", "contains", "matches", "size", "lowerAscii"];

/// What is known of a value before there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Text,
    List,
    /// Told when it is there.
    Claim,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Sign(&'static str),
    End,
}

struct Typed {
    expr: Expr,
    kind: Type,
    at: usize,
    /// It looks at the path.
    path: bool,
}

struct Reader {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    paths: bool,
    shuts_paths: bool,
    users: bool,
    namespaces: bool,
    clusters: bool,
}

const SIGNS: [&str; 18] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ",", ".", "?", ":", "-"];

fn wrong(at: usize, message: impl Into<String>, fix: impl Into<String>) -> Wrong {
    Wrong { at, message: message.into(), fix: fix.into() }
}

pub(super) fn read(text: &str) -> Result<Condition, Wrong> {
    if text.len() > MAX_BYTES {
        let message = format!("the condition is longer than {MAX_BYTES} bytes");
        return Err(wrong(1, message, "split it into several rules"));
    }
    let tokens = tokens(text)?;
    let mut reader = Reader {
        tokens,
        next: 0,
        depth: 0,
        paths: false,
        shuts_paths: false,
        users: false,
        namespaces: false,
        clusters: false,
    };
    let root = reader.either()?;
    let (at, left) = reader.peek().clone();
    if left != Token::End {
        return Err(wrong(
            at,
            format!("{} is not expected here", left.shown()),
            "combine conditions by && or ||",
        ));
    }
    reader.wants(&root, &[Type::Bool], "a condition")?;
    Ok(Condition {
        root: root.expr,
        paths: reader.paths,
        shuts_paths: reader.shuts_paths,
        users: reader.users,
        namespaces: reader.namespaces,
        clusters: reader.clusters,
    })
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Wrong> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = chars.get(at) {
        let start = at + 1;
        if first.is_whitespace() {
            at += 1;
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = chars[at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').count() + at;
            if matches!(chars.get(end), Some('\'' | '"')) {
                let message = "texts have no prefix here";
                return Err(wrong(start, message, "write a plain text: 'a'"));
            }
            tokens.push((start, Token::Name(chars[at..end].iter().collect())));
            at = end;
        } else if first.is_ascii_digit() {
            let end = chars[at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '.').count() + at;
            let digits: String = chars[at..end].iter().collect();
            let number = digits.parse().map_err(|_| {
                wrong(start, format!("{digits} is no whole number"), "numbers are written like 3600")
            })?;
            tokens.push((start, Token::Int(number)));
            at = end;
        } else if matches!(first, '\'' | '"') {
            let (literal, end) = literal(&chars, at)?;
            tokens.push((start, Token::Text(literal)));
            at = end;
        } else {
            let sign =
                SIGNS.into_iter().find(|sign| chars[at..].iter().copied().take(sign.len()).eq(sign.chars()));
            let Some(sign) = sign else {
                return Err(wrong(
                    start,
                    format!("{first:?} has no meaning here"),
                    "see the CEL language definition",
                ));
            };
            tokens.push((start, Token::Sign(sign)));
            at += sign.len();
        }
    }
    tokens.push((chars.len() + 1, Token::End));
    Ok(tokens)
}

/// The text between two quotes, and where it ends.
fn literal(chars: &[char], start: usize) -> Result<(String, usize), Wrong> {
    let quote = chars[start];
    let mut text = String::new();
    let mut at = start + 1;
    loop {
        match chars.get(at) {
            None | Some('\n') => {
                return Err(wrong(start + 1, "the text has no end", format!("close it with {quote}")));
            }
            Some(end) if *end == quote => return Ok((text, at + 1)),
            Some('\\') => {
                text.push(match chars.get(at + 1) {
                    Some(same @ ('\\' | '\'' | '"')) => *same,
                    Some('n') => '\n',
                    Some('t') => '\t',
                    _ => {
                        let fix = "write \\\\ for a backslash";
                        return Err(wrong(at + 1, "this escape is not known", fix));
                    }
                });
                at += 2;
            }
            Some(other) => {
                text.push(*other);
                at += 1;
            }
        }
    }
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Text(text) => format!("the text {text:?}"),
            Self::Int(number) => number.to_string(),
            Self::Sign(sign) => format!("{sign:?}"),
            Self::End => "the end".to_owned(),
        }
    }
}

impl Type {
    fn shown(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a number",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Claim => "a claim",
        }
    }
}

impl Reader {
    fn peek(&self) -> &(usize, Token) {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> (usize, Token) {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn took(&mut self, sign: &'static str) -> bool {
        let there = self.peek().1 == Token::Sign(sign);
        self.next += usize::from(there);
        there
    }

    fn needs(&mut self, sign: &'static str) -> Result<(), Wrong> {
        let (at, token) = self.peek().clone();
        match self.took(sign) {
            true => Ok(()),
            false => Err(wrong(at, format!("{sign:?} is missing before {}", token.shown()), String::new())),
        }
    }

    fn wants(&self, part: &Typed, kinds: &[Type], what: &str) -> Result<(), Wrong> {
        // A claim is what it is when it is there.
        if kinds.contains(&part.kind) || part.kind == Type::Claim {
            return Ok(());
        }
        let wanted = kinds.iter().map(|kind| kind.shown()).collect::<Vec<_>>().join(" or ");
        let message = format!("{what} has to be {wanted}, and this is {}", part.kind.shown());
        Err(wrong(part.at, message, "compare it with something: request.method == 'GET'"))
    }

    fn either(&mut self) -> Result<Typed, Wrong> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("it is nested more than {MAX_DEPTH} deep");
            return Err(wrong(self.peek().0, message, "split it into several rules"));
        }
        let read = self.chain("||", Self::both, Expr::Or);
        self.depth -= 1;
        let read = read?;
        if self.peek().1 == Token::Sign("?") {
            return Err(wrong(self.peek().0, "?: is not supported", "write (a && b) || (!a && c)"));
        }
        Ok(read)
    }

    fn both(&mut self) -> Result<Typed, Wrong> {
        self.chain("&&", Self::relation, Expr::And)
    }

    fn chain(
        &mut self,
        sign: &'static str,
        part: fn(&mut Self) -> Result<Typed, Wrong>,
        make: fn(Box<Expr>, Box<Expr>) -> Expr,
    ) -> Result<Typed, Wrong> {
        let mut all = part(self)?;
        while self.took(sign) {
            let other = part(self)?;
            for side in [&all, &other] {
                self.wants(side, &[Type::Bool], "what is combined")?;
            }
            let path = all.path || other.path;
            let expr = make(Box::new(all.expr), Box::new(other.expr));
            all = Typed { expr, kind: Type::Bool, at: all.at, path };
        }
        Ok(all)
    }

    fn relation(&mut self) -> Result<Typed, Wrong> {
        let one = self.unary()?;
        let (at, token) = self.peek().clone();
        let how = match &token {
            Token::Sign("==") => Comparison::Equal,
            Token::Sign("!=") => Comparison::NotEqual,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::LessOrEqual,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::GreaterOrEqual,
            Token::Name(name) if name == "in" => {
                self.next += 1;
                return self.membership(one);
            }
            _ => return Ok(one),
        };
        self.next += 1;
        let other = self.unary()?;
        let fits = |kind: Type| !matches!(kind, Type::List);
        let same = one.kind == other.kind || one.kind == Type::Claim || other.kind == Type::Claim;
        if !same || !fits(one.kind) || !fits(other.kind) {
            let message = format!("{} cannot be compared with {}", one.kind.shown(), other.kind.shown());
            return Err(wrong(at, message, "compare what is alike; for lists write: 'x' in list"));
        }
        let path = one.path || other.path;
        let opens = how == Comparison::Equal && one.kind != Type::Bool && other.kind != Type::Bool;
        self.shuts_paths |= path && !opens;
        let expr = Expr::Compare(how, Box::new(one.expr), Box::new(other.expr));
        Ok(Typed { expr, kind: Type::Bool, at: one.at, path })
    }

    fn membership(&mut self, one: Typed) -> Result<Typed, Wrong> {
        if let (Expr::Text(name), true) = (&one.expr, self.is_headers()) {
            let expr = Expr::HasHeader(header_name(name, one.at)?);
            self.next += 3;
            return Ok(Typed { expr, kind: Type::Bool, at: one.at, path: false });
        }
        let many = self.unary()?;
        self.wants(&one, &[Type::Bool, Type::Int, Type::Text], "what is sought")?;
        self.wants(&many, &[Type::List], "what it is sought in")?;
        let path = one.path || many.path;
        let expr = Expr::In(Box::new(one.expr), Box::new(many.expr));
        Ok(Typed { expr, kind: Type::Bool, at: one.at, path })
    }

    /// Whether `request.headers` is next, as a whole.
    fn is_headers(&self) -> bool {
        let next = |offset: usize| self.tokens.get(self.next + offset).map(|(_, token)| token);
        let is_name =
            |offset: usize, name: &str| matches!(next(offset), Some(Token::Name(there)) if there == name);
        is_name(0, "request")
            && next(1) == Some(&Token::Sign("."))
            && is_name(2, "headers")
            && next(3) != Some(&Token::Sign("["))
    }

    fn unary(&mut self) -> Result<Typed, Wrong> {
        let at = self.peek().0;
        if self.took("!") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(wrong(
                    at,
                    format!("it is nested more than {MAX_DEPTH} deep"),
                    "write it plainly",
                ));
            }
            let inner = self.unary()?;
            self.depth -= 1;
            self.wants(&inner, &[Type::Bool], "what is negated")?;
            self.shuts_paths |= inner.path;
            return Ok(Typed {
                expr: Expr::Not(Box::new(inner.expr)),
                kind: Type::Bool,
                at,
                path: inner.path,
            });
        }
        if self.took("-") {
            return match self.take() {
                (_, Token::Int(number)) => {
                    Ok(Typed { expr: Expr::Int(-number), kind: Type::Int, at, path: false })
                }
                (at, _) => Err(wrong(at, "only numbers are negative", String::new())),
            };
        }
        let mut part = self.primary()?;
        while self.took(".") {
            part = self.method(part)?;
        }
        Ok(part)
    }

    fn primary(&mut self) -> Result<Typed, Wrong> {
        let (at, token) = self.take();
        let plain = |expr, kind| Ok(Typed { expr, kind, at, path: false });
        match token {
            Token::Text(text) => plain(Expr::Text(text), Type::Text),
            Token::Int(number) => plain(Expr::Int(number), Type::Int),
            Token::Sign("(") => {
                let inner = self.either()?;
                self.needs(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.list(at),
            Token::Name(name) => match name.as_str() {
                "true" => plain(Expr::Bool(true), Type::Bool),
                "false" => plain(Expr::Bool(false), Type::Bool),
                "claims" => plain(Expr::Claim(self.claim_path()?), Type::Claim),
                "has" => self.has(at),
                "size" if self.took("(") => {
                    let inner = self.either()?;
                    self.needs(")")?;
                    self.size(inner)
                }
                _ => self.attribute(at, name),
            },
            other => {
                let fix = "write an attribute, a text or a number: request.method == 'GET'";
                Err(wrong(at, format!("{} is not expected here", other.shown()), fix))
            }
        }
    }

    fn list(&mut self, at: usize) -> Result<Typed, Wrong> {
        let mut items: Vec<Expr> = Vec::new();
        while !self.took("]") {
            let (place, token) = self.take();
            items.push(match token {
                Token::Text(text) => Expr::Text(text),
                Token::Int(number) => Expr::Int(number),
                _ => {
                    let fix = "combine conditions by ||";
                    return Err(wrong(place, "a list has texts and numbers only", fix));
                }
            });
            if items.len() > MAX_ITEMS {
                return Err(wrong(at, format!("the list has more than {MAX_ITEMS} items"), "split it"));
            }
            if !self.took(",") && self.peek().1 != Token::Sign("]") {
                self.needs("]")?;
            }
        }
        Ok(Typed { expr: Expr::List(items), kind: Type::List, at, path: false })
    }

    /// `.a.b` or `['a']['b']` behind `claims`; a method at the end is left there.
    fn claim_path(&mut self) -> Result<Vec<String>, Wrong> {
        self.users = true;
        let mut path = Vec::new();
        loop {
            if self.took("[") {
                match self.take() {
                    (_, Token::Text(name)) => path.push(name),
                    (at, _) => {
                        return Err(wrong(at, "the name of a claim is a text", "write claims['name']"));
                    }
                }
                self.needs("]")?;
                continue;
            }
            let name = match (&self.peek().1, self.tokens.get(self.next + 1), self.tokens.get(self.next + 2))
            {
                (Token::Sign("."), Some((_, Token::Name(name))), after) => {
                    let called = matches!(after, Some((_, Token::Sign("("))));
                    (!called).then(|| name.clone())
                }
                _ => None,
            };
            match name {
                Some(name) => {
                    path.push(name);
                    self.next += 2;
                }
                None if path.is_empty() => {
                    return Err(wrong(
                        self.peek().0,
                        "no claim is named",
                        "write claims.groups, or claims['groups']",
                    ));
                }
                None => return Ok(path),
            }
        }
    }

    fn has(&mut self, at: usize) -> Result<Typed, Wrong> {
        self.needs("(")?;
        let (inside, token) = self.take();
        if token != Token::Name("claims".to_owned()) {
            let fix = "write has(claims.groups), or: 'x-tenant' in request.headers";
            return Err(wrong(inside, "has() asks for claims only", fix));
        }
        let path = self.claim_path()?;
        self.needs(")")?;
        Ok(Typed { expr: Expr::HasClaim(path), kind: Type::Bool, at, path: false })
    }

    fn attribute(&mut self, at: usize, first: String) -> Result<Typed, Wrong> {
        let mut name = first;
        loop {
            if name == "request.headers" {
                return self.header(at);
            }
            if let Some((_, attribute, kind)) = ATTRIBUTES.into_iter().find(|(known, ..)| *known == name) {
                let path = attribute == Attribute::Path;
                self.paths |= path;
                self.users |= attribute == Attribute::User;
                self.namespaces |= attribute == Attribute::Namespace;
                self.clusters |= attribute == Attribute::Cluster;
                return Ok(Typed { expr: Expr::Attribute(attribute), kind, at, path });
            }
            match (&self.peek().1, self.tokens.get(self.next + 1)) {
                (Token::Sign("."), Some((_, Token::Name(more)))) => {
                    name = format!("{name}.{more}");
                    self.next += 2;
                }
                _ => break,
            }
        }
        let known = || ATTRIBUTES.into_iter().map(|(known, ..)| known).chain(["request.headers", "claims"]);
        let fix = match near(&name, known()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known: {}", known().collect::<Vec<_>>().join(", ")),
        };
        Err(wrong(at, format!("there is no attribute {name}"), fix))
    }

    fn header(&mut self, at: usize) -> Result<Typed, Wrong> {
        let fix = "write request.headers['x-tenant'], or: 'x-tenant' in request.headers";
        if !self.took("[") {
            return Err(wrong(at, "request.headers is asked for one header", fix));
        }
        let (place, token) = self.take();
        let Token::Text(name) = token else {
            return Err(wrong(place, "the name of a header is a text", fix));
        };
        self.needs("]")?;
        Ok(Typed { expr: Expr::Header(header_name(&name, place)?), kind: Type::Text, at, path: false })
    }

    fn method(&mut self, on: Typed) -> Result<Typed, Wrong> {
        let (at, token) = self.take();
        let name = match token {
            Token::Name(name) if METHODS.contains(&name.as_str()) => name,
            other => {
                let shown = other.shown();
                let fix = match near(&shown, METHODS) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known: {}", METHODS.join(", ")),
                };
                return Err(wrong(at, format!("there is no method {shown}"), fix));
            }
        };
        self.needs("(")?;
        if name == "size" {
            self.needs(")")?;
            return self.size(on);
        }
        self.wants(&on, &[Type::Text], &format!("what {name} is asked of"))?;
        let (start, path) = (on.at, on.path);
        if name == "lowerAscii" {
            self.needs(")")?;
            return Ok(Typed { expr: Expr::Lower(Box::new(on.expr)), kind: Type::Text, at: start, path });
        }
        let argument = self.either()?;
        self.needs(")")?;
        self.wants(&argument, &[Type::Text], &format!("what {name} is given"))?;
        let path = path || argument.path;
        let test = match name.as_str() {
            "startsWith" => TextTest::StartsWith,
            "endsWith" => TextTest::EndsWith,
            "contains" => TextTest::Contains,
            _ => {
                let expr = Expr::Matches(Box::new(on.expr), pattern(&argument, path)?);
                return Ok(Typed { expr, kind: Type::Bool, at: start, path });
            }
        };
        let expr = Expr::Test(test, Box::new(on.expr), Box::new(argument.expr));
        Ok(Typed { expr, kind: Type::Bool, at: start, path })
    }

    fn size(&mut self, of: Typed) -> Result<Typed, Wrong> {
        self.wants(&of, &[Type::Text, Type::List], "what has a size")?;
        // A longer path is another one: no bound on it opens anything safely.
        self.shuts_paths |= of.path;
        Ok(Typed { expr: Expr::Size(Box::new(of.expr)), kind: Type::Int, at: of.at, path: of.path })
    }
}

/// Compiled once: so it has to be written out.
fn pattern(argument: &Typed, path: bool) -> Result<regex::Regex, Wrong> {
    let Expr::Text(text) = &argument.expr else {
        return Err(wrong(
            argument.at,
            "the pattern of matches is a text",
            "write it out: matches('^/a/[0-9]+$')",
        ));
    };
    if path && !text.starts_with('^') {
        let message = "the pattern could match in the middle of a path";
        return Err(wrong(argument.at, message, "begin it with ^, and end it with $ if that is meant"));
    }
    // CEL's finds its match anywhere; in a path each alternative begins where the path does. By itself first, as there.
    let around = if path { format!("(?:{text})(?s:.*)") } else { format!("(?s:.*)(?:{text})(?s:.*)") };
    compile_pattern(text).and_then(|_| compile_pattern(&around)).map_err(|error| {
        let message = match error {
            PatternError::Syntax(why) => format!("the regular expression cannot be read: {why}"),
            costly => format!("the regular expression is too costly: {costly}"),
        };
        wrong(argument.at, message, "use smaller repetitions and ASCII classes")
    })
}

fn header_name(name: &str, at: usize) -> Result<String, Wrong> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    match !name.is_empty() && name.bytes().all(token) {
        true => Ok(name.to_ascii_lowercase()),
        false => Err(wrong(at, format!("{name:?} is not the name of a header"), "write it like x-tenant")),
    }
}
