/** What this browser may do. The service decides; the page only leaves out what would be refused. */

import { whenViewer } from "./api";

export const access = $state<{ viewer: boolean }>({ viewer: false });

whenViewer(() => {
  access.viewer = true;
});
