/** The new-session form while the page is open: leaving the view and coming back loses nothing. */

import { EMPTY_FORM, type SessionForm } from "./form";

export const draft = $state<{ form: SessionForm }>({ form: { ...EMPTY_FORM } });
