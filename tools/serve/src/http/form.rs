//! [`Form`]: the fields of a multipart body.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use multer::Multipart;

use super::body::{Holding, Trouble, Watched};
use crate::api::error::ApiError;

/// Most fields of a form.
const MAX_FIELDS: usize = 64;
/// Most bytes of a field that is not a file.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// The field that holds a recording.
pub(crate) const FILE: &str = "file";

/// Fields in their order, and the file.
#[derive(Default)]
pub(crate) struct Form {
    texts: Vec<(String, String)>,
    file: Option<Vec<u8>>,
}

impl Form {
    /// Reads a body whose type is `content_type`.
    ///
    /// Errors: 415 for another type, 400 for one that is malformed, and the reasons of [`Watched::limited`].
    pub(crate) async fn read(
        body: Body,
        content_type: &str,
        most: usize,
        holding: Arc<Mutex<Holding>>,
    ) -> Result<Self, ApiError> {
        let boundary = multer::parse_boundary(content_type)
            .map_err(|_| ApiError::media_type("want a body of the type multipart/form-data, with a boundary"))?;
        let trouble = Trouble::default();
        let limited = Watched::limited(body, most, holding, trouble.clone());
        let mut multipart = Multipart::new(Body::new(limited).into_data_stream(), boundary);
        let fields = Self::fields(&mut multipart).await;
        trouble.take().map_or(fields, Err)
    }

    async fn fields(multipart: &mut Multipart<'_>) -> Result<Self, ApiError> {
        let malformed = |error: multer::Error| ApiError::invalid(format!("multipart body: {error}"));
        let mut form = Self::default();
        while let Some(mut field) = multipart.next_field().await.map_err(malformed)? {
            if form.texts.len() == MAX_FIELDS {
                return Err(ApiError::invalid(format!("want at most {MAX_FIELDS} fields")));
            }
            let name = field.name().unwrap_or_default().to_owned();
            let is_file = name == FILE;
            let mut bytes = Vec::new();
            while let Some(chunk) = field.chunk().await.map_err(malformed)? {
                bytes.extend_from_slice(&chunk);
                if !is_file && bytes.len() > MAX_TEXT_BYTES {
                    return Err(ApiError::field(&name, format!("{name}: want at most {MAX_TEXT_BYTES} bytes")));
                }
            }
            if is_file {
                if form.file.is_some() {
                    return Err(ApiError::field(FILE, "file: want one, got several"));
                }
                form.file = Some(bytes);
            } else {
                let text = String::from_utf8(bytes);
                let text = text.map_err(|_| ApiError::field(&name, format!("{name}: want text in UTF-8")))?;
                form.texts.push((name, text));
            }
        }
        Ok(form)
    }

    /// The file.
    ///
    /// Errors: there is none, or it is empty.
    pub(crate) fn file(&mut self) -> Result<Vec<u8>, ApiError> {
        match self.file.take() {
            None => Err(ApiError::field(FILE, "file: want a recording, got none")),
            Some(bytes) if bytes.is_empty() => Err(ApiError::field(FILE, "file: want a recording, got no bytes")),
            Some(bytes) => Ok(bytes),
        }
    }

    /// The last value of a field; an empty one counts as none.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.all(name).last().filter(|text| !text.is_empty())
    }

    /// All values of a field.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl DoubleEndedIterator<Item = &'a str> + use<'a> {
        let name = name.to_owned();
        self.texts.iter().filter(move |(field, _)| *field == name).map(|(_, text)| text.as_str())
    }
}
