"""The second embedded world: words of two to four letters on a sign, judged by a real OCR."""
