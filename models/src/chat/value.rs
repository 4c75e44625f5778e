//! [`Value`]: what a template is given.

/// Data for a template, as JSON has it. Numbers stay numbers, however a program reads its JSON.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Nothing: Python's `None`.
    None,
    /// True or false.
    Bool(bool),
    /// A number without a fraction.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// Values in a row.
    List(Vec<Value>),
    /// Values with names, in this order.
    Map(Vec<(String, Value)>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl Value {
    /// A map of these values.
    pub fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

impl From<&Value> for minijinja::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::None => Self::from(()),
            Value::Bool(flag) => Self::from(*flag),
            Value::Integer(n) => Self::from(*n),
            Value::Float(x) => Self::from(*x),
            Value::Text(text) => Self::from(text.as_str()),
            Value::List(list) => list.iter().map(Self::from).collect(),
            Value::Map(entries) => {
                Self::from_pairs(entries.iter().map(|(name, value)| (name.as_str(), Self::from(value))))
            }
        }
    }
}
